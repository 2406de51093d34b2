package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
)

// NoSkipEnv, set to 1, turns every skip of Need into a failure.
const NoSkipEnv = "RSCCTL_NO_SKIP"

// HostVMEnv, set to 1, says that what this kernel cannot run is run in the VM of test/hostvm.
const HostVMEnv = "RSCCTL_HOSTVM"

const taintDie = 1 << 7 // Documentation/admin-guide/tainted-kernels.rst: D, the kernel died recently

// Oopsed reports whether this kernel has had an oops or a BUG since it booted.
func Oopsed() bool {
	b, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return err == nil && n&taintDie != 0
}

// Requirement is something a test needs of the machine. Name appears in the skip's text, so it is written for the person
// who reads the list of what was skipped.
type Requirement struct {
	Name  string
	Check func() error // nil: it is there
	InVM  bool         // the VM of test/hostvm has it
}

// Requirements that tests of this module have. Need always checks Root first.
var (
	Root      = Requirement{Name: "root (CAP_SYS_ADMIN and CAP_NET_ADMIN)", Check: checkRoot}
	BPF       = Requirement{Name: "loading BPF programs", Check: checkBPF}
	AFXDP     = Requirement{Name: "AF_XDP sockets (CONFIG_XDP_SOCKETS)", Check: func() error { return checkSocket(unix.AF_XDP, unix.SOCK_RAW) }}
	TCX       = Requirement{Name: "TCX, Linux 6.6", Check: func() error { return kernelAtLeast(6, 6) }}
	TAP       = Device("/dev/net/tun")
	Vhost     = Requirement{Name: "/dev/vhost-net", Check: Device("/dev/vhost-net").Check, InVM: true}
	VLAN      = Requirement{Name: "802.1Q devices (CONFIG_VLAN_8021Q)", Check: checkVLAN, InVM: true}
	Bonding   = Requirement{Name: "bonds (CONFIG_BONDING)", Check: checkBond, InVM: true}
	WireGuard = Requirement{Name: "WireGuard (CONFIG_WIREGUARD)", Check: checkWireGuard}
	BPFFS     = Requirement{Name: "a BPF file system on /sys/fs/bpf (mount -t bpf bpf /sys/fs/bpf)", Check: checkBPFFS}
	Packets   = Requirement{Name: "AF_PACKET sockets", Check: func() error { return checkSocket(unix.AF_PACKET, unix.SOCK_RAW) }}
)

// Device requires a device file that can be opened for reading and writing.
func Device(path string) Requirement {
	return Requirement{Name: path, Check: func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}}
}

// Tool requires a program in PATH.
func Tool(name string) Requirement {
	return Requirement{Name: "the program " + name, Check: func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// Kernel requires a kernel version.
func Kernel(major, minor int) Requirement {
	return Requirement{Name: fmt.Sprintf("Linux %d.%d", major, minor), Check: func() error { return kernelAtLeast(major, minor) }}
}

// Need skips the test unless the process is root and every requirement is met, naming all that are missing. With
// RSCCTL_NO_SKIP=1 it fails the test instead.
func Need(t testing.TB, needs ...Requirement) {
	t.Helper()
	NeedLiveKernel(t)
	need(t, needs)
}

// need is Need on a kernel that has not oopsed.
func need(t testing.TB, needs []Requirement) {
	t.Helper()
	missing, inVM := unmet(append([]Requirement{Root}, needs...))
	switch {
	case missing == "":
	case inVM:
		SkipToVM(t, missing)
	default:
		Skip(t, missing)
	}
}

// NeedLiveKernel is the part of Need for tests that need no privileges, but touch the network's configuration.
//
// On a kernel that has oopsed since boot nothing of the network may be touched: the lock that every change of it takes
// can be held for good, and a test that waits for it cannot even be killed. There the test runs in a VM with a kernel of
// its own (test/hostvm); the run that promises that by RSCCTL_HOSTVM=1 may skip it here.
func NeedLiveKernel(t testing.TB) {
	t.Helper()
	if Oopsed() {
		if os.Getenv(HostVMEnv) == "1" {
			t.Skip("allowed: this kernel has oopsed since boot: reboot to run it here, or run its package in the VM of test/hostvm")
		}
		Skip(t, "a kernel that has not oopsed since boot (reboot, or 'go run ./test/hostvm' for a VM)")
	}
}

// Skip ends a test that cannot run here, or fails it when RSCCTL_NO_SKIP=1. The text says what is missing.
func Skip(t testing.TB, missing string) {
	t.Helper()
	if os.Getenv(NoSkipEnv) == "1" {
		t.Fatalf("needs %s (a skip is a failure: %s=1)", missing, NoSkipEnv)
	}
	t.Skipf("needs %s", missing)
}

// ToVM begins what SkipToVM says. test/skips then looks whether the test ran in the VM.
const ToVM = "allowed: left to the VM of test/hostvm: needs "

// SkipToVM ends a test that needs what this kernel lacks and the VM of test/hostvm has. A run that has that VM do its part
// (RSCCTL_HOSTVM=1) may leave the test to it; otherwise this is Skip.
func SkipToVM(t testing.TB, missing string) {
	t.Helper()
	if os.Getenv(HostVMEnv) == "1" {
		t.Skipf("%s%s", ToVM, missing)
	}
	Skip(t, missing)
}

// unmet names what is missing, and says whether the VM has all of that.
func unmet(needs []Requirement) (text string, inVM bool) {
	var missing []string
	inVM = true
	for _, n := range needs {
		err := n.Check()
		if err == nil {
			continue
		}
		missing = append(missing, fmt.Sprintf("%s: %v", n.Name, err))
		inVM = inVM && n.InVM
		if n.Name == Root.Name {
			break // the rest would fail for the same reason
		}
	}
	return strings.Join(missing, "; "), inVM
}

func checkRoot() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return errors.New("not permitted")
		}
	}
	return nil
}

func checkBPF() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

func checkSocket(family, kind int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// checkVLAN makes a VLAN device in a namespace of its own, where it harms nobody. The loopback takes none.
func checkVLAN() error {
	ns, err := newNS(pidName(prefix+"vlan", os.Getpid()))
	if err != nil {
		return err
	}
	err = ns.Do(func() error {
		parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}
		if err := netlink.LinkAdd(parent); err != nil {
			return err
		}
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "a.7", ParentIndex: l.Attrs().Index}, VlanId: 7})
	})
	return errors.Join(err, ns.Delete())
}

// checkBond makes a bond in a namespace of its own.
func checkBond() error {
	ns, err := newNS(pidName(prefix+"bond", os.Getpid()))
	if err != nil {
		return err
	}
	err = ns.Do(func() error { return netlink.LinkAdd(netlink.NewLinkBond(netlink.LinkAttrs{Name: "b"})) })
	return errors.Join(err, ns.Delete())
}

// checkWireGuard makes a WireGuard device in a namespace of its own.
func checkWireGuard() error {
	ns, err := newNS(pidName(prefix+"wg", os.Getpid()))
	if err != nil {
		return err
	}
	err = ns.Do(func() error { return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "w"}}) })
	return errors.Join(err, ns.Delete())
}

func checkBPFFS() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); err != nil {
		return err
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return errors.New("not mounted")
	}
	return nil
}

func kernelAtLeast(major, minor int) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return fmt.Errorf("kernel release %q: %w", release, err)
	}
	if a < major || a == major && b < minor {
		return fmt.Errorf("this is %s", release)
	}
	return nil
}
