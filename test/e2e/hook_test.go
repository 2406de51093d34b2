package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// The hooks are the scripts that the package installs, called as libvirt and Proxmox VE call them.
const (
	libvirtHook = "../../packaging/libvirt/qemu"
	proxmoxHook = "../../packaging/proxmox/rscctl"
)

// hookRig is a rig with a bridge, and a folder of programs for the hooks' PATH.
type hookRig struct {
	*rig
	path string
}

func newHookRig(t *testing.T) *hookRig {
	t.Helper()
	netnstest.Need(t, netnstest.Tool("sh"), netnstest.Requirement{Name: "the hooks of packaging/, which a checkout has", Check: func() error {
		_, err := os.Stat(libvirtHook)
		return err
	}})
	h := &hookRig{rig: newRig(t, netnstest.Options{}), path: t.TempDir()}
	h.bridge()
	program, err := filepath.Abs(product)
	if err == nil {
		err = os.Symlink(program, filepath.Join(h.path, "rscctl"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// call runs a hook on the host and returns what it printed and its exit code. It has the environment of libvirt's hooks.
func (h *hookRig) call(stdin io.Reader, script string, args ...string) (out, errs string, code int) {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(script, args...)
	cmd.Env = []string{"LC_ALL=C", "HOME=/", "PATH=" + h.path + ":/usr/bin:/bin", "RSCCTL_SOCKET=" + filepath.Join(h.dir, "ctl.sock")}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := h.net.B.NS.Run(cmd)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%s %q: %v", script, args, err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// libvirt calls libvirt's hook and expects no failure and no word: at a migration its output would be taken for the domain's XML.
func (h *hookRig) libvirt(xml, domain, operation, sub string) {
	h.t.Helper()
	if out, errs, code := h.call(strings.NewReader(xml), libvirtHook, domain, operation, sub, "-"); code != 0 || out != "" || errs != "" {
		h.t.Errorf("%s %s of %s: exit %d, %q, %q", operation, sub, domain, code, out, errs)
	}
}

// vms are the names of the VMs that are attached.
func (h *hookRig) vms() (out []string) {
	h.t.Helper()
	var st api.Status
	h.json(&st, "status")
	for _, i := range st.Interfaces {
		for _, p := range i.Ports {
			out = append(out, p.VM)
		}
	}
	slices.Sort(out)
	return out
}

func (h *hookRig) expect(when string, want ...string) {
	h.t.Helper()
	if got := h.vms(); !slices.Equal(got, want) {
		h.t.Errorf("%s: attached are %q, want %q", when, got, want)
	}
}

// domain is the XML of a domain with one interface on vhost-user and one on a tap.
func (h *hookRig) domain(ports string) string {
	return fmt.Sprintf(`<domain type='kvm'><name>web1</name><metadata>
<rscctl:ports xmlns:rscctl="https://github.com/rscctl/rscctl">%s</rscctl:ports></metadata><devices>
<interface type='vhostuser'><mac address='%s'/><source type='unix' path='%s' mode='client'/><model type='virtio'/></interface>
<interface type='bridge'><mac address='%s'/><source bridge='br0'/><target dev='vnet0'/><model type='virtio'/></interface>
</devices></domain>`, ports, macA, filepath.Join(h.dir, "web1.sock"), macB)
}

// A domain with both kinds of interfaces has them attached when it starts, its socket before QEMU is there and its tap when that has come, keeps
// them when libvirt is started anew, and leaves nothing behind.
func TestLibvirtsHookFollowsADomain(t *testing.T) {
	h := newHookRig(t)
	ports := fmt.Sprintf(`<rscctl:port mac=%q iface=%q/><rscctl:port mac=%q name="web1-tap" hold="20us"/>`, macA, h.net.B.Dev, macB)
	xml := h.domain(ports)
	h.libvirt(strings.ReplaceAll(xml, "rscctl/rscctl", "else"), "other", "prepare", "begin") // is none of ours
	h.expect("another domain")

	h.libvirt(xml, "web1", "prepare", "begin")
	h.expect("before QEMU starts", "web1")
	g := h.boot(stackguest.Config{Socket: filepath.Join(h.dir, "web1.sock"), MAC: mac(t, macA)}, "10.77.0.11/24", "fd77::11/64")
	vm := h.tapVM(tapvm.Options{Tap: "vnet0", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.10/24"), IPv6: netip.MustParsePrefix("fd77::10/64")})
	h.libvirt(xml, "web1", "start", "begin")
	h.expect("before QEMU starts", "web1")
	h.libvirt(xml, "web1", "started", "begin")
	h.expect("the domain runs", "web1", "web1-tap")
	h.merged(h.net.A, vm, toTap, false)
	netnstest.Bulk(t, h.net.A, g.side, 4<<20, false, time.Minute)

	h.must("policy", "set", "web1-tap", "--hold", "30us")
	h.libvirt(xml, "web1", "reconnect", "begin")
	var p api.PolicyResponse
	if h.json(&p, "policy", "get", "web1-tap"); p.Policy.HoldNS != 30000 {
		t.Errorf("libvirt's new start took back what was set meanwhile: hold %d ns", p.Policy.HoldNS)
	}
	h.must("detach", h.net.B.Dev, "--vm", "web1-tap")
	h.libvirt(xml, "web1", "reconnect", "begin")
	h.expect("libvirt has been started anew", "web1", "web1-tap")

	h.libvirt(xml, "web1", "migrate", "begin")
	h.libvirt(xml, "web1", "restore", "begin")
	vm.Kill()
	g.Close()
	h.libvirt(xml, "web1", "stopped", "end")
	h.libvirt(xml, "web1", "release", "end")
	h.expect("the domain has ended")
	h.untouched(t)
	h.libvirt(xml, "web1", "release", "end") // there is nothing left
}

// What goes wrong is one line with its reason, and a VM on its tap starts all the same; one without its socket does not.
func TestLibvirtsHookSaysWhatGoesWrong(t *testing.T) {
	h := newHookRig(t)
	h.tapVM(tapvm.Options{Tap: "vnet0", MAC: mac(t, macB)})
	socket := fmt.Sprintf(`<rscctl:port mac=%q iface=%q/>`, macA, h.net.B.Dev)
	tap := fmt.Sprintf(`<rscctl:port mac=%q/>`, macB)
	fails := func(xml, domain, operation string, fatal bool, says string) {
		t.Helper()
		out, errs, code := h.call(strings.NewReader(xml), libvirtHook, domain, operation, "begin", "-")
		if (code != 0) != fatal || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "rscctl: hook: ") || !strings.Contains(errs, says) {
			t.Errorf("%s of %s: exit %d (fatal: %t), %q, want one line that says %q: %q", operation, domain, code, fatal, out, says, errs)
		}
	}
	fails(h.domain(socket)[:200], "web1", "prepare", false, "XML")
	fails(h.domain(socket)+strings.Repeat(" ", 5<<20), "web1", "prepare", false, "bytes")
	fails(h.domain(socket), "a/b", "prepare", true, "letters, digits")
	fails(h.domain(tap), "a/b", "started", false, "letters, digits")
	fails(h.domain(strings.ReplaceAll(socket, h.net.B.Dev, "nosuch0")), "web1", "prepare", true, "nosuch0")
	fails(h.domain(`<rscctl:port mac="`+macB+`" iface="br0"/>`), "web1", "started", false, "rscctl attach "+h.net.B.Dev)
	h.expect("nothing was attached")
	h.libvirt(h.domain(socket), "web1", "hibernate", "begin") // of a newer libvirt
	h.stop()
	fails(h.domain(tap), "web1", "started", false, "no controller")
	fails(h.domain(socket), "web1", "prepare", true, "no controller")
	// No rscctl is no reason either, for any domain.
	if err := os.Remove(filepath.Join(h.path, "rscctl")); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("/usr/bin/rscctl"); err != nil {
		h.libvirt(h.domain(socket), "web1", "prepare", "begin")
	}
}

// What a hook says is in the system log as well, one line: libvirt drops the standard error of a hook that ends well.
func TestWhatAHookSaysIsInTheSystemLog(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("unshare"), netnstest.Tool("mount"))
	dir := t.TempDir() // becomes /run, where a system log is looked for last
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `[ ! -S /dev/log ] || mount --bind "$1/log" /dev/log; mount --bind "$1" /run && shift && exec "$@"`, "sh", dir,
		product, "hook", "libvirt", "--syslog", "web1", "prepare", "begin", "-")
	cmd.Stdin = strings.NewReader("<domain>\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "rscctl: hook: domain web1: ") {
		t.Fatalf("%v: %s", err, out)
	}
	b := make([]byte, 4096)
	_ = l.SetReadDeadline(time.Now().Add(netnstest.Patience(5 * time.Second)))
	n, err := l.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.TrimSuffix(string(b[:n]), "\n"); !strings.Contains(line, "rscctl[") || !strings.Contains(line, "hook: domain web1: ") || strings.Contains(line, "\n") {
		t.Errorf("%q", line)
	}
}

// snippet is a copy of the hookscript with flags, as an administrator makes one.
func (h *hookRig) snippet(flags string) string {
	h.t.Helper()
	b, err := os.ReadFile(proxmoxHook)
	if err != nil {
		h.t.Fatal(err)
	}
	text := strings.Replace(string(b), " -- ", " --configs "+h.dir+" "+flags+" -- ", 1)
	script := filepath.Join(h.dir, "snippet")
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return script
}

// A VM of Proxmox VE is attached when it has started, though its guest has not sent yet and its tap has an address of its own, and detached
// when it has ended.
func TestTheProxmoxHookFollowsAVM(t *testing.T) {
	h := newHookRig(t)
	conf := filepath.Join(h.dir, "100.conf")
	text := "name: web\nnet0: virtio=" + strings.ToUpper(macA) + ",bridge=br0\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	script := h.snippet("--hold 20us")
	phase := func(phase, says string) {
		t.Helper()
		if out, errs, code := h.call(nil, script, "100", phase); code != 0 || out != says || errs != "" {
			t.Errorf("%s: exit %d, %q, want %q; %q", phase, code, out, says, errs)
		}
	}
	phase("pre-start", "")
	vm := h.tapVM(tapvm.Options{Tap: "tap100i0", MAC: mac(t, macA), OwnMAC: true, IPv4: netip.MustParsePrefix("10.77.0.10/24")}) // without IPv6 it is silent
	phase("post-start", "attached 100 to "+h.net.B.Dev+"\n")
	h.expect("the VM runs", "100")
	h.merged(h.net.A, vm, toTap, false)
	phase("pre-stop", "")
	vm.Kill()
	if err := os.Remove(conf); err != nil { // destroyed meanwhile
		t.Fatal(err)
	}
	phase("post-stop", "detached 100 from "+h.net.B.Dev+"\n")
	h.expect("the VM has ended")
	h.untouched(t)
}

// A bridge of Proxmox VE's firewall between the tap and the uplink is a reason not to attach, which the task's log gets; the VM runs on.
func TestTheProxmoxHookPassesAReasonOn(t *testing.T) {
	h := newHookRig(t)
	tapvm.Start(t, tapvm.Options{Tap: "tap100i0", Host: h.net.B.NS, MAC: mac(t, macA), OwnMAC: true})
	h.net.B.Do(t, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fwpr100p0"}, PeerName: "fwln100i0"}); err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "fwbr100i0"}})
	})
	for port, bridge := range map[string]string{"fwpr100p0": "br0", "fwln100i0": "fwbr100i0", "tap100i0": "fwbr100i0"} {
		h.net.B.Output(t, "ip", "link", "set", "dev", port, "master", bridge)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "100.conf"), []byte("net0: virtio="+macA+",bridge=br0,firewall=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := h.call(nil, h.snippet("--iface "+h.net.B.Dev), "100", "post-start")
	if code != 0 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "fwbr100i0") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	t.Log(errs)
	h.untouched(t)
}
