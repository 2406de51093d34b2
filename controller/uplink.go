package controller

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
)

// Sizes of one NIC queue. The UMEM holds the frames of the fill ring and the RX ring, what the flow table holds, what
// waits for guests, and the TX ring; chunks are used last in, first out, so that only the busy part stays in cache.
const (
	chunkCount       = 8192
	fillRing         = 2048
	rxRing           = 2048
	txRingSize       = 1024
	completionRing   = 1024
	tableSlots       = 4096
	maxHeldChunks    = chunkCount / 4
	maxBlockedChunks = chunkCount / 4
	minBlockedChunks = 128
	xdpHeadroom      = 256 // XDP_PACKET_HEADROOM, include/uapi/linux/bpf.h
	smallChunk       = 2048
	largeChunk       = 4096
)

// uplink is one interface in use: its XDP program, a socket and a worker per queue, and the VMs on it.
type uplink struct {
	name     string
	facts    *netdev.Facts
	chunk    int
	prog     *bpf.Program
	socks    []*xsk.Socket
	workers  []*worker
	wg       sync.WaitGroup
	mcast    *netdev.McastSocket
	log      *slog.Logger
	ports    map[string]*vmPort // by VM name; guarded by the controller's lock
	byIdx    [maxPorts]*vmPort
	flows    *ebpf.Map
	native   bool            // XDP runs in the driver
	steering map[uint32]bool // by port index: XDP sends frames of the VM to us
	changes  []change        // what was changed on the host, in order
	warnings []string
}

// chunkFor returns the UMEM chunk size for an MTU: XDP's headroom, the Ethernet header with one tag and the MTU must fit.
func chunkFor(mtu int) (int, error) {
	need := xdpHeadroom + ethHeader + vlanTag + mtu
	switch {
	case need <= smallChunk:
		return smallChunk, nil
	case need <= largeChunk:
		return largeChunk, nil
	}
	return 0, fmt.Errorf("%w: %d, a UMEM chunk of %d bytes holds at most %d: lower the interface's MTU",
		ErrMTU, mtu, largeChunk, largeChunk-xdpHeadroom-ethHeader-vlanTag)
}

// inspectUplink looks at an interface and tells whether it can be an uplink for VMs of a VLAN. It changes nothing.
func inspectUplink(name string, vlan uint16) (*netdev.Facts, int, error) {
	f, err := netdev.Inspect(name)
	if err != nil {
		return nil, 0, err
	}
	if err := netdev.CheckUplink(name, vlan); err != nil {
		return nil, 0, err
	}
	chunk, err := chunkFor(f.MTU)
	if err != nil {
		return nil, 0, fmt.Errorf("interface %s: %w", name, err)
	}
	if f.XDP.Attached {
		return nil, 0, fmt.Errorf("interface %s: %w", name, foreignXDP(f))
	}
	return f, chunk, nil
}

// foreignXDP says who holds the interface: another controller, or a program that is not ours.
func foreignXDP(f *netdev.Facts) error {
	name := ""
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.XDP.ProgID)); err == nil {
		if info, err := p.Info(); err == nil {
			name = info.Name
		}
		p.Close()
	}
	if name == bpf.ProgramName {
		return fmt.Errorf("%w (XDP program %d): detach it there first", ErrHeld, f.XDP.ProgID)
	}
	return fmt.Errorf("%w (program %d %q): remove it with 'ip link set dev %s xdp off', or choose another interface", bpf.ErrForeignXDP, f.XDP.ProgID, name, f.Name)
}

// openUplink loads and attaches the XDP program and starts the workers. On failure nothing is left behind.
func openUplink(f *netdev.Facts, chunk int, flows *ebpf.Map, trouble chan<- struct{}, log *slog.Logger) (u *uplink, err error) {
	u = &uplink{name: f.Name, facts: f, chunk: chunk, log: log.With("iface", f.Name), ports: map[string]*vmPort{}, flows: flows, steering: map[uint32]bool{}}
	defer func() {
		if err != nil {
			_ = u.close()
			u, err = nil, fmt.Errorf("interface %s: %w", f.Name, err)
		}
	}()
	if err := u.loadProgram(flows); err != nil {
		return u, err
	}
	if u.mcast, err = netdev.OpenMulticast(f.Index); err != nil {
		return u, err
	}
	for q := range f.RxQueues {
		s, err := xsk.Open(xsk.Config{
			Ifindex: f.Index, Queue: q, Chunks: chunkCount, ChunkSize: chunk,
			RxSize: rxRing, TxSize: txRingSize, FillSize: fillRing, CompSize: completionRing,
			NeedWakeup: true, Native: u.prog.Mode() == "native",
		})
		if err != nil {
			return u, err
		}
		u.socks = append(u.socks, s)
		var mcast *netdev.McastSocket
		if q == 0 {
			mcast = u.mcast
		}
		w, err := newWorker(q, f.MTU, s, mcast, trouble, u.log)
		if err != nil {
			return u, err
		}
		u.workers = append(u.workers, w)
		if err := u.prog.SetSocket(q, s.FD()); err != nil {
			return u, err
		}
		u.wg.Go(w.run)
	}
	return u, nil
}

// loadProgram tries native XDP, then generic, and keeps what generic mode costs as a warning.
func (u *uplink) loadProgram(flows *ebpf.Map) error {
	var first error
	for _, native := range []bool{true, false} {
		p, err := bpf.Load(bpf.LoadOptions{Ifindex: u.facts.Index, Queues: u.facts.RxQueues, Native: native, Flows: flows})
		if err != nil {
			return err
		}
		if err = p.Attach(native); err == nil {
			u.prog, u.native = p, native
			if !native {
				u.warnings = append(u.warnings, fmt.Sprintf("generic XDP: the driver refused native mode (%v); every frame of %s costs more, and the kernel's own GRO on it is off", first, u.name))
			}
			return nil
		}
		p.Close()
		if !errors.Is(err, bpf.ErrUnsupported) {
			return err
		}
		first = err
	}
	return first
}

// close stops the workers and takes everything off the interface. Safe on a half-built uplink.
func (u *uplink) close() error {
	var errs []error
	if u.prog != nil {
		errs = append(errs, u.prog.Detach())
	}
	for _, w := range u.workers {
		w.stop()
	}
	for _, s := range u.socks {
		errs = append(errs, s.Close())
	}
	if u.mcast != nil {
		errs = append(errs, u.mcast.Close())
	}
	if u.prog != nil {
		errs = append(errs, u.prog.Close())
	}
	return errors.Join(errs...)
}

// each runs fn on every worker in turn, with the worker as its argument.
func (u *uplink) each(fn func(*worker)) error {
	var errs []error
	for _, w := range u.workers {
		errs = append(errs, w.do(func() { fn(w) }))
	}
	return errors.Join(errs...)
}

// freeIndex returns an unused port index.
func (u *uplink) freeIndex() (uint32, error) {
	for i, p := range u.byIdx {
		if p == nil {
			return uint32(i), nil
		}
	}
	return 0, fmt.Errorf("interface %s: %d VMs: %w: detach one first", u.name, maxPorts, ErrTaken)
}

// setSteering notes whether XDP sends frames of a VM to us. A generic program costs every frame of the interface the kernel's
// GRO, also when it passes them all (measured: frames of 47,000 bytes became 1,514), so it comes off while no VM wants it.
func (u *uplink) setSteering(idx uint32, on bool) error {
	if on {
		u.steering[idx] = true
	} else {
		delete(u.steering, idx)
	}
	switch attached := u.prog.Mode() != ""; {
	case u.native:
		return nil
	case len(u.steering) > 0 && !attached:
		return u.prog.Attach(false)
	case len(u.steering) == 0 && attached:
		return u.prog.Detach()
	}
	return nil
}
