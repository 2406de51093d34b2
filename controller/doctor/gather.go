package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
)

// loopback is the index of lo in every network namespace: programs are loaded for it, and attached nowhere.
const loopback = 1

// notRoot is why something was not looked at.
const notRoot = "you are not root"

// GatherHost looks at what a controller needs to start; bpffs is where it would pin. It changes nothing.
func GatherHost(bpffs string) *Facts {
	f := &Facts{Root: os.Geteuid() == 0, Caps: effectiveCaps(), CPUs: runtime.NumCPU(), BPFFS: bpffs, Kernel: kernel()}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil {
		f.Memlock = limit.Cur
	}
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	f.BTF = err == nil
	f.OnBPFFS = bpf.OnBPFFS(bpffs)
	f.AFXDP, f.OneChunk = lookAFXDP(), oneChunk()
	f.Programs = Look{Err: notRoot}
	if f.mayLoad() {
		f.Programs = Look{Seen: true, Err: loadPrograms()}
	}
	return f
}

// Gather looks at the host and at one interface, or with iface "" at all hardware. It changes nothing. ctx bounds the programs that
// are asked for their version.
func Gather(ctx context.Context, iface, bpffs string) (*Facts, error) {
	f := GatherHost(bpffs)
	f.Tun, f.VhostNet, f.KVM = device("/dev/net/tun"), device("/dev/vhost-net"), device("/dev/kvm")
	f.QEMU, f.Libvirt = findTool(ctx, qemuNames()), findTool(ctx, []string{"virsh"})
	f.Named = iface != ""
	err := netdev.With(func(h *netdev.Handle) error {
		links, err := h.Links()
		if err != nil {
			return err
		}
		f.Taps, f.TapsLook = leftovers(links)
		names := []string{iface}
		if iface == "" {
			names = names[:0]
			for _, l := range links {
				if l.Hardware {
					names = append(names, l.Name)
				}
			}
		}
		return f.lookAtAll(h, names)
	})
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	return f, nil
}

func (f *Facts) mayLoad() bool {
	return f.has(unix.CAP_NET_ADMIN) && (f.has(unix.CAP_SYS_ADMIN) || f.hasAll([]uint{unix.CAP_BPF, unix.CAP_PERFMON}))
}

func effectiveCaps() uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return 0
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
}

func kernel() (k Kernel) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		k.Release, k.Build = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])
	}
	if b, err := os.ReadFile("/proc/version_signature"); err == nil {
		k.Signature = strings.TrimSpace(string(b))
	}
	return k
}

// device tells whether a device file is there and has its driver. Who may not open it has it all the same.
func device(path string) bool {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY)
}

// oneChunk tells why a frame cannot come in several chunks.
func oneChunk() string {
	err := bpf.CheckFrags()
	if err == nil {
		err = xsk.CheckMultiBuffer()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// lookAFXDP opens a socket. The kernel looks for the address family before it looks for the right to use it.
func lookAFXDP() Look {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	switch {
	case err == nil:
		_ = unix.Close(fd)
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		if os.Geteuid() != 0 {
			return Look{Seen: true}
		}
		return Look{Seen: true, Err: "the kernel or a seccomp profile forbids them: " + err.Error()}
	default:
		return Look{Seen: true, Err: err.Error()}
	}
	return Look{Seen: true}
}

// loadPrograms has the kernel's verifier read the programs, and says what was wrong.
func loadPrograms() string {
	p, err := bpf.Load(bpf.LoadOptions{Ifindex: loopback, Queues: 1})
	if err != nil {
		return err.Error()
	}
	err = p.Close()
	t, loadErr := bpf.LoadTap(bpf.TapOptions{Ifindex: loopback})
	if loadErr == nil {
		loadErr = t.Close()
	}
	if err := errors.Join(err, loadErr); err != nil {
		return err.Error()
	}
	return ""
}

// look gathers the facts of an interface.
func (f *Facts) look(h *netdev.Handle, name string) (i Interface, err error) {
	now, err := h.Inspect(name)
	if errors.Is(err, netdev.ErrNoDevice) {
		return Interface{Facts: netdev.Facts{Name: name}, Missing: true}, nil
	}
	if err != nil {
		return i, err
	}
	i.Facts = *now
	if err := h.CheckUplink(name, 0); err != nil && !errors.As(err, &i.NotUplink) {
		return i, err
	}
	if i.Kind == "bond" {
		if i.Bond, err = h.BondOf(i.Index); err != nil {
			return i, err
		}
	}
	if i.XDP.ProgID != 0 {
		i.Program = bpf.NameOf(ebpf.ProgramID(i.XDP.ProgID))
		i.Remove = bpf.RemoveXDP(ebpf.ProgramID(i.XDP.ProgID), i.XDP.Off(i.Name))
	}
	if features, err := h.XDPFeatures(i.Index); err == nil {
		i.Features = &features
	}
	for _, feature := range []string{netdev.LRO, netdev.GROHW, netdev.RxVLAN} {
		if on, fixed, err := h.Offload(name, feature); err == nil {
			i.Offloads = append(i.Offloads, Offload{feature, on, fixed})
		}
	}
	if i.Kind == "veth" {
		i.Peer = lookPeer(h, name)
		i.ReadsTag = f.readsTag(i.Index)
	}
	return i, nil
}

// lookPeer returns nil for a peer that cannot be looked at.
func lookPeer(h *netdev.Handle, name string) *Peer {
	p, err := h.VethPeer(name)
	if err != nil {
		return nil
	}
	out := &Peer{Peer: *p}
	if !p.Reachable {
		return out
	}
	err = p.Do(func(there *netdev.Handle) error {
		out.TxChecksum.Feature, out.TxVLAN.Feature = netdev.TxChecksum, netdev.TxVLAN
		for _, o := range []*Offload{&out.TxChecksum, &out.TxVLAN} {
			var err error
			if o.On, o.Fixed, err = there.Offload(p.Name, o.Feature); err != nil && !errors.Is(err, netdev.ErrNoFeature) {
				return err
			}
		}
		facts, err := there.Inspect(p.Name)
		if err == nil {
			out.TxQueues = facts.TxQueues
		}
		return err
	})
	if err != nil {
		return nil
	}
	return out
}

// readsTag loads the XDP program as attach would, for this veth.
func (f *Facts) readsTag(index int) Look {
	if !f.mayLoad() {
		return Look{Err: notRoot}
	}
	p, err := bpf.Load(bpf.LoadOptions{Ifindex: index, Queues: 1, Native: true})
	if err != nil {
		return Look{Err: err.Error()}
	}
	defer p.Close()
	if !p.ReadsVLANTag() {
		return Look{Seen: true, Err: "not seen"}
	}
	return Look{Seen: true}
}

// leftovers finds the taps and other interfaces whose filter belongs to no process.
func leftovers(links []netdev.Link) (out []Leftover, look Look) {
	hung := map[uint32]netdev.Link{}
	for _, l := range links {
		filters := bpf.HostFilters
		if l.Tap {
			filters = bpf.TapFilters
		}
		programs, err := filters(l.Index)
		if err != nil {
			return nil, Look{Err: err.Error()}
		}
		for _, id := range programs {
			hung[id] = l
		}
	}
	if len(hung) == 0 {
		return nil, Look{Seen: true}
	}
	if os.Geteuid() != 0 {
		return nil, Look{Err: "other users' processes cannot be seen"}
	}
	for id := range openPrograms("/proc") {
		delete(hung, id)
	}
	sure := initialPIDs()
	for _, l := range links { // in their order
		for _, at := range hung {
			if at.Index == l.Index {
				out = append(out, Leftover{Name: l.Name, Index: l.Index, Sure: sure})
				break
			}
		}
	}
	return out, Look{Seen: true}
}

// initialPIDs tells whether all processes of the host can be seen: this is the first PID namespace (PROC_PID_INIT_INO,
// linux/proc_ns.h).
func initialPIDs() bool {
	to, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && to == "pid:[4026531836]"
}

// openPrograms are the BPF programs that some process has open, by the kernel's id (prog_id of fdinfo).
func openPrograms(root string) map[uint32]bool {
	out := map[uint32]bool{}
	fds, _ := filepath.Glob(filepath.Join(root, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || !strings.HasSuffix(to, ":bpf-prog") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if n, _ := fmt.Sscanf(line, "prog_id: %d", &id); n == 1 {
				out[id] = true
			}
		}
	}
	return out
}
