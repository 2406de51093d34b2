package controller

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
)

// The XDP program of an interface may be somebody else's, who has pinned the map of its AF_XDP sockets (--xsk-map): we put sockets of some
// queues into it, and touch neither the program nor the rest of the map. Frames come without our metadata then, and not only those of VMs:
// the worker finds out whose they are (datapath/foreign.go).

var (
	errNoQueue       = errors.New("no such queue")
	errBondMap       = errors.New("a map has sockets of one interface, and this is a bond")
	errForeignPieces = errors.New("frames in several pieces come by rscctl's own XDP program")
)

// notOffered is what such an interface lacks, in an operator's words.
var notOffered = []string{
	"flows (rscctl flows)", "counters of what XDP does (outcomes)", "a VM's share of the RX ring", "VMs on taps (--tap), and with them the kernel's path while a worker hangs",
	"the way back to the host for what comes to the queues and is for no VM: it is dropped (rx_nobody)",
}

// foreignNote says the same in a line.
func foreignNote(iface string) string {
	return fmt.Sprintf("%s's XDP program is somebody else's and stays as it is. Not offered then: %s", iface, strings.Join(notOffered, "; "))
}

// noFlows says why an interface shows no flows.
func noFlows(iface string) string {
	return fmt.Sprintf("%s: its XDP program is somebody else's (--xsk-map), and rscctl's own is what counts flows", iface)
}

// foreign is somebody else's program on a device. It implements program: what only ours can do is not done.
type foreign struct {
	dev     *device
	path    string
	queues  []uint16 // sorted
	sockets *bpf.SocketMap
	placed  map[int]int // descriptors of the sockets that are to be in the map, by queue
	adopted bool        // a process before put them there
	trouble []string    // found by the last look
}

// checkForeign checks what a request says of somebody else's program, and puts it into its one form.
func checkForeign(req *api.AttachRequest) error {
	switch {
	case req.XSKMap == "" && len(req.Queues) == 0:
		return nil
	case req.XSKMap == "":
		return fmt.Errorf("queues %s: %w: they are those of --xsk-map: give the path of the map as well, or leave --queue out", api.QueuesText(req.Queues), ErrUsage)
	case !filepath.IsAbs(req.XSKMap) || strings.ContainsFunc(req.XSKMap, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("xsk-map %q: %w: name it from / on, in visible characters, such as /sys/fs/bpf/xsks_map", req.XSKMap, ErrUsage)
	case len(req.Queues) == 0:
		return fmt.Errorf("xsk-map %s: %w: name the receive queues whose sockets go into it, such as --queue 0", req.XSKMap, ErrUsage)
	case req.VhostUser == "":
		return fmt.Errorf("xsk-map %s: %w: a VM on its tap needs rscctl's own XDP program, which leaves to the kernel what is not TCP: attach it by --vhost-user, or without --xsk-map", req.XSKMap, ErrUsage)
	}
	req.XSKMap, req.Queues = filepath.Clean(req.XSKMap), slices.Sorted(slices.Values(req.Queues))
	for i, q := range req.Queues {
		if i > 0 && q == req.Queues[i-1] {
			return fmt.Errorf("queue %d: %w: it is named twice: name each queue once", q, ErrUsage)
		}
	}
	return nil
}

// agrees refuses a VM that wants the frames of its interface by another way than those that are there.
func (u *uplink) agrees(req *api.AttachRequest) error {
	switch {
	case u.foreign == nil && req.XSKMap == "":
		return nil
	case u.foreign == nil:
		return fmt.Errorf("attach: interface %s: %w: its VMs use rscctl's own XDP program: leave --xsk-map and --queue out, or 'rscctl detach %s' first", u.name, ErrTaken, u.name)
	case u.foreign.path != req.XSKMap || !slices.Equal(u.foreign.queues, req.Queues):
		return fmt.Errorf("attach: interface %s: %w: its VMs get their frames by one map and its queues: attach with '--xsk-map %s --queue %s', or 'rscctl detach %s' first",
			u.name, ErrTaken, api.ShellWord(u.foreign.path), api.QueuesText(u.foreign.queues), u.name)
	}
	return nil
}

// inspectForeign looks whether an interface's frames can be had by somebody else's map. It changes nothing.
func inspectForeign(f *netdev.Facts, bond *netdev.Bond, req *api.AttachRequest) error {
	if bond != nil {
		return fmt.Errorf("%w: leave --xsk-map out, or attach to an interface that is no bond", errBondMap)
	}
	if f.XDP.Attached && bpf.NameOf(ebpf.ProgramID(f.XDP.ProgID)) == bpf.ProgramName {
		return fmt.Errorf("%w (XDP program %d is rscctl's): detach it there first, or leave --xsk-map out", ErrHeld, f.XDP.ProgID)
	}
	m, err := openForeign(req.XSKMap, f, req.Queues)
	if err != nil {
		return err
	}
	return m.Close()
}

// openForeign opens the map and checks that it has a place for each of the queues, which the interface must have.
func openForeign(path string, f *netdev.Facts, queues []uint16) (*bpf.SocketMap, error) {
	if last := queues[len(queues)-1]; int(last) >= f.RxQueues {
		return nil, fmt.Errorf("queue %d: %w: name receive queues 0 to %d, or give it more ('ethtool -L %s')", last, errNoQueue, f.RxQueues-1, f.Name)
	}
	m, err := bpf.OpenSocketMap(path)
	switch {
	case errors.Is(err, bpf.ErrPermission):
		return nil, fmt.Errorf("xsk-map %s: %w: let the user of rscctl write to it ('chown root %s')", path, err, api.ShellWord(path))
	case err != nil:
		return nil, fmt.Errorf("xsk-map %s: %w: name the path where the XDP program's owner has pinned its map of AF_XDP sockets ('bpftool map show pinned %s')", path, err, api.ShellWord(path))
	}
	if last := queues[len(queues)-1]; int(last) >= m.Places() {
		err := fmt.Errorf("xsk-map %s: queue %d: %w: it has entries for queues 0 to %d: name those, or have it made larger", path, last, errNoQueue, m.Places()-1)
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// openForeign begins to get a device's frames by somebody else's map.
func (u *uplink) openForeign(s *site) (*device, error) {
	f := s.devs[0]
	m, err := openForeign(s.xskMap, f, s.picked)
	if err != nil {
		return nil, err
	}
	return u.addForeign(&device{facts: f, native: f.XDP.Mode == bpf.ModeNative}, s.xskMap, s.picked, m), nil
}

func (u *uplink) addForeign(d *device, path string, queues []uint16, m *bpf.SocketMap) *device {
	u.foreign = &foreign{dev: d, path: path, queues: queues, sockets: m, placed: map[int]int{}}
	d.prog = u.foreign
	return d
}

// adoptForeign goes on with the map of a parcel, whether or not it is still pinned.
func (u *uplink) adoptForeign(p *parcel.Parcel, s *packedForeign, d *device) error {
	fd, err := p.Take(s.Map, parcel.BPFMap)
	if err != nil {
		return err
	}
	m, err := bpf.AdoptSocketMap(fd)
	if err != nil {
		return err
	}
	u.addForeign(d, s.Path, s.Queues, m)
	u.foreign.adopted = true
	return nil
}

// describe is what a process after this one goes on with.
func (f *foreign) describe(keep *keeper, tag string) *packedForeign {
	return &packedForeign{Path: f.path, Queues: f.queues, Map: keep.fd(fmt.Sprintf("%s.xskmap.%d", tag, f.sockets.ID()), f.sockets.FD())}
}

// SetSocket implements program. A place that is another's is an error, but to the heir of who had it: that goes on, and says so.
func (f *foreign) SetSocket(queue, fd int) error {
	err := f.sockets.Take(queue, fd)
	if errors.Is(err, bpf.ErrPlaceTaken) && !f.adopted {
		return fmt.Errorf("xsk-map %s: queue %d: %w: end who uses it, or name other queues", f.path, queue, err)
	}
	if err != nil && !errors.Is(err, bpf.ErrPlaceTaken) {
		return fmt.Errorf("xsk-map %s: %w", f.path, err)
	}
	f.placed[queue] = fd
	return nil
}

// Detach implements program: it takes our sockets out of the map.
func (f *foreign) Detach() error {
	var errs []error
	for queue, fd := range f.placed {
		errs = append(errs, f.sockets.Leave(queue, fd))
		delete(f.placed, queue)
	}
	return errors.Join(errs...)
}

// Release implements program.
func (f *foreign) Release() error { return f.Close() }

// Close implements program. Closing twice is no error.
func (f *foreign) Close() error { return f.sockets.Close() }

// Mode implements program: how the other one's program sits on the interface now.
func (f *foreign) Mode() string {
	if mode := f.dev.facts.XDP.Mode; mode == bpf.ModeNative || mode == bpf.ModeGeneric {
		return mode
	}
	return ""
}

// What the program of an interface does for VMs, and somebody else's does not.

func (f *foreign) SharesAhead(_, _, _ int) (*bpf.Shares, error) { return nil, nil }
func (f *foreign) SetPort(bpf.PortKey, bpf.PortValue) error     { return nil }
func (f *foreign) DeletePort(bpf.PortKey) error                 { return nil }
func (f *foreign) SetExcluded(uint32, []uint16) error           { return nil }
func (f *foreign) SetFlows(uint32, *ebpf.Map) error             { return nil }
func (f *foreign) EndFlows(uint32, *ebpf.Map) error             { return nil }
func (f *foreign) Slots() *bpf.SlotView                         { return nil }
func (f *foreign) Evicted(uint32, []bpf.Flow) uint64            { return 0 }
func (f *foreign) Outcomes() (map[string]uint64, error)         { return nil, nil }
func (f *foreign) ID() uint32                                   { return 0 }
func (f *foreign) ReadsVLANTag() bool                           { return false }
func (f *foreign) SetBackup(bool) error                         { return nil }
func (f *foreign) TakeLead() error                              { return nil }
func (f *foreign) Attach(bool) error                            { return nil }
func (f *foreign) TakePlace() error                             { return nil }
