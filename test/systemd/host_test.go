package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
)

// Where test/hostvm says that it is the throw-away VM, and where the packages are.
const (
	vmEnv       = "RSCCTL_SYSTEMD"
	packagesEnv = "RSCCTL_PACKAGES"
)

// patience is what an emulated machine may take for something that takes a moment, beside others that are busy: the kernel verifies the
// BPF programs at each start, ten seconds in emulation where a processor takes 0.3.
const patience = 300 * time.Second

// host is the system that the test runs in.
type host struct {
	t        *testing.T
	packages string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Getenv(vmEnv) != "1" {
		t.Skip("allowed: installs, kills and purges in a throw-away VM: go run ./test/hostvm systemd")
	}
	return &host{t, os.Getenv(packagesEnv)}
}

// try runs a shell command and returns what it prints, on both channels.
func (h *host) try(command string) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	b, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(b)), err
}

// must runs one that has to succeed.
func (h *host) must(command string) string {
	h.t.Helper()
	out, err := h.try(command)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s\n%s", command, err, out, h.journal())
	}
	return out
}

// refused runs one that has to fail, and to say all of this.
func (h *host) refused(command string, says ...string) {
	h.t.Helper()
	out, err := h.try(command)
	if err == nil {
		h.t.Errorf("%s: done: %s", command, out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			h.t.Errorf("%s: %q does not say %q", command, out, s)
		}
	}
}

func (h *host) journal() string {
	out, _ := h.try("journalctl --no-pager -o short-monotonic -u rscctl | tail -n 40")
	return out
}

// eventually waits for something to hold.
func (h *host) eventually(what string, check func() error) {
	h.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Second) {
		if err = check(); err == nil {
			return
		}
	}
	h.t.Fatalf("%s: %v\n%s", what, err, h.journal())
}

// property is what systemd says of the service.
func (h *host) property(name string) string {
	h.t.Helper()
	return h.must("systemctl show --value -p " + name + " rscctl")
}

// pid is the controller's process, which is there when the service is active.
func (h *host) pid() int {
	h.t.Helper()
	n, err := strconv.Atoi(h.property("MainPID"))
	if err != nil || n == 0 {
		h.t.Fatalf("main process %d: %v\n%s", n, err, h.journal())
	}
	return n
}

// status asks the controller.
func (h *host) status() (st api.Status, err error) {
	out, err := h.try("rscctl status -o json")
	if err != nil {
		return st, fmt.Errorf("%w: %s", err, out)
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// serves waits until these VMs are attached, by the process of that version, which is not the one given.
func (h *host) serves(version string, not int, vms ...string) (pid int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("version %s serves %q", version, vms), func() error {
		st, err := h.status()
		if err != nil {
			return err
		}
		var have []string
		for _, i := range st.Interfaces {
			for _, p := range i.Ports {
				have = append(have, p.VM)
			}
		}
		slices.Sort(have)
		switch pid = st.PID; {
		case pid == not:
			return errors.New("the process of before answers")
		case st.Version != version || !slices.Equal(have, vms):
			return fmt.Errorf("version %s with %q, waiting %+v", st.Version, have, st.Waiting)
		}
		if active, err := h.try("systemctl is-active rscctl"); err != nil {
			return errors.New(active)
		}
		if main := h.pid(); main != pid {
			return fmt.Errorf("process %d answers, %d is the service's", pid, main)
		}
		return nil
	})
	return pid
}

// noProgram fails the test for each interface that has an XDP program.
func (h *host) noProgram(devs ...string) {
	h.t.Helper()
	for _, dev := range devs {
		if out := h.must("ip link show " + dev); strings.Contains(out, "xdp") {
			h.t.Errorf("a program is left: %s", out)
		}
	}
}

// crashLoop kills every process of the service as soon as it is there, until systemd starts none any more.
func (h *host) crashLoop() {
	h.t.Helper()
	h.eventually("the service is given up", func() error {
		for range 1000 {
			b, _ := os.ReadFile("/sys/fs/cgroup/system.slice/rscctl.service/cgroup.procs") // it goes with the last process
			for _, pid := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(pid); err == nil {
					_ = syscall.Kill(n, syscall.SIGKILL) // or it has ended
				}
			}
			time.Sleep(time.Millisecond)
		}
		state, _ := h.try("systemctl is-failed rscctl")
		if state != "failed" {
			return errors.New(state)
		}
		return nil
	})
}

// port is one VM as status shows it.
func (h *host) port(vm string) api.Port {
	h.t.Helper()
	st, err := h.status()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, i := range st.Interfaces {
		for _, p := range i.Ports {
			if p.VM == vm {
				return p
			}
		}
	}
	h.t.Fatalf("no VM %s in %+v", vm, st)
	return api.Port{}
}

// network makes two wires, up0 and up1, and a tap in a bridge with up1 that a VM of libvirt's could have: open, and with libvirt's
// address for the VM's.
func (h *host) network(tap string, address string) {
	h.t.Helper()
	for _, n := range []string{"0", "1"} {
		h.must("ip link add up" + n + " type veth peer name wire" + n + " && ip link set up" + n + " up && ip link set wire" + n + " up")
	}
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap}, Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(link); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		for _, f := range link.Fds {
			f.Close()
		}
	})
	h.must("ip link add br0 type bridge && ip link set br0 up && ip link set up1 master br0")
	h.must("ip link set " + tap + " address " + address + " && ip link set " + tap + " master br0 && ip link set " + tap + " up")
}

// leftovers are the files of the package, and what else has its name, outside of what the test brought.
func (h *host) leftovers() []string {
	h.t.Helper()
	var out []string
	for _, root := range []string{"/etc", "/usr", "/var", "/run", "/sys/fs/bpf", "/opt", "/lib/systemd", "/srv"} {
		_ = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err == nil && strings.Contains(filepath.Base(path), "rscctl") {
				out = append(out, path)
			}
			return nil
		})
	}
	return out
}

func (h *host) signal(pid int, sig syscall.Signal) {
	h.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		h.t.Fatal(err)
	}
}

// scrape reads the metrics as a Prometheus on this machine would.
func scrape(h *host, address string) {
	h.t.Helper()
	h.eventually("metrics at "+address, func() error {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && !strings.Contains(string(b), "rscctl_build_info") {
			err = fmt.Errorf("%s: %.200s", r.Status, b)
		}
		return err
	})
}
