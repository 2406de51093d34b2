package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// manager is the socket of a service manager (sd_notify(3)).
type manager struct {
	t    *testing.T
	path string
	told chan string // what it was sent: who is not heard holds up who tells it
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), told: make(chan string, 1<<16)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		defer close(m.told)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			m.told <- string(buf[:n])
		}
	}()
	return m
}

// wait reads messages up to the first that has the variable, and returns that one.
func (m *manager) wait(variable string) string {
	m.t.Helper()
	late := time.After(netnstest.Patience(20 * time.Second))
	for {
		select {
		case text := <-m.told:
			for line := range strings.Lines(text) {
				if strings.TrimSpace(line) == variable {
					return text
				}
			}
		case <-late:
			m.t.Fatalf("%s was not sent", variable)
		}
	}
}

// A service manager is told when the VMs are served, that the workers live, when the configuration is read again, and that it stops.
func TestAServiceManagerIsTold(t *testing.T) {
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("WATCHDOG_USEC", "400000")
	r := newRig(t, netnstest.Options{NoIPv6: true})
	m.wait("READY=1")
	r.attach("web", macA)
	m.wait("WATCHDOG=1")
	if err := r.run.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if text := m.wait("RELOADING=1"); !strings.Contains(text, "MONOTONIC_USEC=") {
		t.Errorf("reloading without its moment: %q", text)
	}
	m.wait("READY=1")
	r.logs("by SIGHUP")
	if err := r.run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.wait("STOPPING=1")
}

// Every thread has given up what attaching does not need, and cannot get it back; attaching works with what is left.
func TestThePrivilegesThatNobodyNeedsAreGivenUp(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.attach("web", macA)
	const kept = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_IPC_LOCK | 1<<unix.CAP_CHOWN |
		1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER
	var threads []string
	for _, pid := range []int{r.run.Process.Pid, r.worker()} { // the keeper and the process that works
		of, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(of) < 2 {
			t.Fatalf("%d threads of %d: %v", len(of), pid, err)
		}
		threads = append(threads, of...)
	}
	for _, path := range threads {
		f, err := os.Open(path)
		if err != nil {
			continue // it has ended
		}
		lines, seen := bufio.NewScanner(f), 0
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ":\t")
			switch name {
			case "CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb":
				seen++
				if have, err := strconv.ParseUint(value, 16, 64); err != nil || have&^uint64(kept) != 0 {
					t.Errorf("%s: %s %s: %v", path, name, value, err)
				}
			case "NoNewPrivs":
				seen++
				if value != "1" {
					t.Errorf("%s: new privileges", path)
				}
			}
		}
		f.Close()
		if seen != 6 {
			t.Errorf("%s: %d of 6 lines", path, seen)
		}
	}
}

// The six capabilities of the service's unit are enough for VMs on vhost-user and on taps, also for a socket that a crash left behind
// and that belongs to QEMU's user alone.
func TestTheUnitsCapabilitiesAreEnough(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.TAP, netnstest.Tool("setpriv"))
	r := &rig{t: t, net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir(),
		under: []string{"setpriv", "--bounding-set", "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock,+chown"}}
	if err := os.Chmod(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(r.stop)
	r.bridge()
	r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA)})
	r.attachTap("vm0", macA, "--trust-tap")
	socket := r.attach("web", macB, "--socket-owner", "1:1")
	r.kill()
	r.start()
	r.eventually("both VMs are attached again", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) > 0 || len(st.Interfaces) != 1 || len(st.Interfaces[0].Ports) != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	time.Sleep(2500 * time.Millisecond) // two looks: our own programs at TC, whose names are not told, are no filters that the VM on the tap bypasses
	var st api.Status
	r.json(&st, "status")
	for _, p := range st.Interfaces[0].Ports {
		if p.StopReason != "" || len(p.Bypassed) > 0 {
			t.Errorf("VM %s: %s, %v", p.VM, p.StopReason, p.Bypassed)
		}
	}
	if all := r.net.B.Output(t, "ip", "-o", "link"); !strings.Contains(all, "rsc-"+r.net.B.Dev) || strings.Contains(fmt.Sprint(st.Interfaces[0].Warnings), "no neighbour") {
		t.Errorf("the host is no neighbour: %v", st.Interfaces[0].Warnings)
	}
	// And what listens is still found to: nothing else may take its place.
	if out, code := r.cli("attach", r.net.B.Dev, "--vm", "thief", "--mac", macC, "--vhost-user", socket); code != 1 {
		t.Errorf("a socket that is in use was given to another VM: %s", out)
	}
	var file unix.Stat_t
	if err := unix.Stat(socket, &file); err != nil || file.Uid != 1 || file.Gid != 1 {
		t.Errorf("the socket belongs to %d:%d: %v", file.Uid, file.Gid, err)
	}
}

// The file of described VMs is put in force at start and at SIGHUP. A VM that cannot be attached waits with its reason and keeps none
// of the others from being served; a file that is wrong changes nothing.
func TestTheConfigurationIsPutInForce(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF)
	r := &rig{t: t, net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir()}
	file := filepath.Join(r.dir, "rscctl.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("version: 1\nvms:\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vm := func(name, iface, mac, more string) string {
		return fmt.Sprintf("  - {name: %s, iface: %s, mac: %q, vhost-user: %s%s}\n", name, iface, mac, filepath.Join(r.dir, name+".sock"), more)
	}
	dev := r.net.B.Dev
	const group = "01:00:5e:00:00:01" // which no host could attach: it does not wait
	write(vm("lost", "nosuch0", macA, "") + vm("never", dev, group, "") + vm("web", dev, macB, ", policy: {hold: 20us}"))
	r.flags = []string{"--config", file}
	r.start()
	t.Cleanup(r.stop)
	// served waits until the VMs are those, with the causes of those that wait.
	served := func(running, waits string, cause string) {
		t.Helper()
		r.eventually("VMs "+running+", waiting "+waits, func() error {
			var st api.Status
			r.json(&st, "status")
			var is, waiting, causes []string
			for _, i := range st.Interfaces {
				for _, p := range i.Ports {
					is = append(is, p.VM)
				}
			}
			for _, w := range st.Waiting {
				waiting, causes = append(waiting, w.VM), append(causes, w.Cause)
			}
			if strings.Join(is, " ") != running || strings.Join(waiting, " ") != waits || !strings.Contains(strings.Join(causes, "; "), cause) {
				return fmt.Errorf("VMs %q, waiting %q: %q", is, waiting, causes)
			}
			return nil
		})
	}
	reload := func() {
		t.Helper()
		if err := r.run.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	served("web", "lost", "nosuch0")

	write(vm("lost", dev, macA, "") + vm("web", dev, macB, ", policy: {hold: 30us}"))
	reload()
	served("lost web", "", "")
	r.eventually("the policy is changed", func() error {
		var p api.PolicyResponse
		if r.json(&p, "policy", "get", "web"); p.Policy.HoldNS != 30000 {
			return fmt.Errorf("hold %d ns", p.Policy.HoldNS)
		}
		return nil
	})

	write("  - {name: web, iface: " + dev)
	reload()
	r.eventually("the wrong file is said", func() error {
		if !strings.Contains(r.log.String(), "configuration: not put in force") {
			return errors.New("not yet")
		}
		return nil
	})
	served("lost web", "", "")

	// A running VM that cannot be changed goes on as it was; a start with a wrong file serves what the state remembers.
	write(vm("web", "nosuch0", macB, ""))
	reload()
	r.eventually("the failed step is said", func() error {
		if !strings.Contains(r.log.String(), "it is attached as it was") {
			return errors.New("not yet")
		}
		return nil
	})
	served("lost web", "", "")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	served("lost web", "", "")
}
