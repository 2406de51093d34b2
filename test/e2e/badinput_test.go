package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// Every wrong attach is one line that names the thing, with the documented exit code, and leaves nothing behind.
func TestWrongAttachesSayWhyAndLeaveNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	dev := r.net.B.Dev
	sock := func(name string) string { return filepath.Join(r.dir, name) }
	plain := sock("plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", sock("live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	good := []string{"--vm", "x", "--mac", macA, "--vhost-user", sock("x.sock")}
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no such interface", append([]string{"nosuch0"}, good...), 1, "nosuch0"},
		{"malformed MAC", []string{dev, "--vm", "x", "--mac", "52:54", "--vhost-user", sock("x")}, 2, "52:54"},
		{"multicast MAC", []string{dev, "--vm", "x", "--mac", "01:00:5e:00:00:01", "--vhost-user", sock("x")}, 2, "01:00:5e"},
		{"no socket", []string{dev, "--vm", "x", "--mac", macA}, 2, "vhost-user"},
		{"VLAN out of range", append([]string{dev, "--vlan", "5000"}, good...), 2, "5000"},
		{"unknown profile", append([]string{dev, "--profile", "lro"}, good...), 2, "lro"},
		{"path too long", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", "/tmp/" + strings.Repeat("x", 120)}, 1, "long"},
		{"live socket", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", sock("live")}, 1, sock("live")},
		{"another kind of file", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", plain}, 1, plain},
		{"folder of the kernel's", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", "/proc/x.sock"}, 1, "name a socket in another folder"},
		{"line break in the path", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", sock("x\ny")}, 2, `x\ny`},
		{"escape in the path", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", sock("x\x1b[31m")}, 2, "visible characters"},
		{"owner of nobody", append([]string{dev, "--socket-owner", ":"}, good...), 2, "names nobody"},
		{"missing folder", []string{dev, "--vm", "x", "--mac", macA, "--vhost-user", sock("no/x.sock")}, 1, sock("no")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := r.cli(append([]string{"attach"}, tc.args...)...)
			if code != tc.code || strings.Count(strings.TrimSpace(out), "\n") != 0 || !strings.Contains(out, tc.says) {
				t.Errorf("exit %d, want %d, one line that says %q:\n%s", code, tc.code, tc.says, out)
			}
			r.untouched(t)
		})
	}
}

// untouched fails the test when the uplink carries a program or the status an interface.
func (r *rig) untouched(t *testing.T) {
	t.Helper()
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces) != 0 {
		t.Errorf("status lists %+v", st.Interfaces)
	}
	if out := r.net.B.Output(t, "ip", "link", "show", "dev", r.net.B.Dev); strings.Contains(out, "xdp") {
		t.Errorf("a program is left on the uplink: %s", out)
	}
}

func TestNamesAndAddressesAreTakenOnce(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.attach("vm0", macA)
	for name, args := range map[string][]string{
		"VM name": {"--vm", "vm0", "--mac", macB, "--vhost-user", filepath.Join(r.dir, "b.sock")},
		"address": {"--vm", "vm1", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "b.sock")},
		"socket":  {"--vm", "vm1", "--mac", macB, "--vhost-user", filepath.Join(r.dir, "vm0.sock")},
	} {
		if out, code := r.cli(append([]string{"attach", r.net.B.Dev}, args...)...); code != 1 {
			t.Errorf("%s twice: exit %d: %s", name, code, out)
		}
	}
	r.attach("vm1", macA, "--vlan", "7") // the same MAC in another VLAN is another address
	r.must("detach", r.net.B.Dev)
	r.untouched(t)
}

func TestOneControllerPerStateAndPerInterface(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.attach("vm0", macA)
	// The same places.
	if out := r.net.B.Output(t, "sh", "-c", product+" run "+strings.Join(r.places(), " ")+"; echo exit $?"); !strings.Contains(out, "exit 1") || !strings.Contains(out, "another controller") {
		t.Errorf("a second run on the same state: %s", out)
	}
	// Other places, the same interface.
	other := *r
	other.dir = t.TempDir()
	other.start()
	defer other.stop()
	out, code := other.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macB, "--vhost-user", filepath.Join(other.dir, "x.sock"))
	if code != 1 || !strings.Contains(out, "another controller") {
		t.Errorf("an interface of another controller: exit %d: %s", code, out)
	}
}

func TestVerbsWithoutAControllerExitWithThree(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.stop()
	for _, verb := range []string{"status", "flows", "stats", "policy get x", "detach eth0"} {
		if out, code := r.cli(strings.Fields(verb)...); code != 3 {
			t.Errorf("%s: exit %d: %s", verb, code, out)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "ctl.sock")); err == nil {
		t.Error("the control socket is left")
	}
}

// Who is not root is told so, and not to choose other places.
func TestWhoIsNotRootIsToldSo(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP)
	binary := filepath.Join(os.TempDir(), fmt.Sprintf("rscctl-e2e-%d", os.Getpid())) // t.TempDir lets nobody else in
	b, err := os.ReadFile(product)
	if err == nil {
		err = os.WriteFile(binary, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(binary) })
	dir := t.TempDir()
	for _, args := range []string{"run", "purge", "doctor --undo", "demo", "observe lo --seconds 1"} {
		line := strings.Fields(args)
		if line[0] != "observe" && line[0] != "demo" {
			line = append(line, "--state", filepath.Join(dir, "state"))
		}
		cmd := exec.Command(binary, line...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54322, Gid: 54322}}
		cmd.Dir = "/"
		out, _ := cmd.CombinedOutput() // its exit code tells
		if text := string(out); cmd.ProcessState.ExitCode() != 1 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "root") || strings.Contains(text, "choose another") {
			t.Errorf("%s: %v: %s", args, cmd.ProcessState, text)
		}
	}
}

// An MTU that nothing holds is refused, in one line that names the largest that works: on a kernel that brings a frame in several chunks that is
// 16,302, on another one what a chunk holds.
func TestAnMTUThatNothingHoldsIsRefused(t *testing.T) {
	mtu, most := 20000, "16302"
	if multiBuffer.Check() != nil {
		mtu, most = jumboMTU, "3822"
	}
	r := newRig(t, netnstest.Options{MTU: mtu})
	out, code := r.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "x.sock"))
	if code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, fmt.Sprintf("MTU too large: %d, and %s is the largest that works", mtu, most)) {
		t.Errorf("exit %d: %s", code, out)
	}
	r.untouched(t)
}
