package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Names of what becomes of a frame, in the order of enum outcome in abi.h. Every frame counts under exactly one of the
// names up to "pass_backup"; the others count events beside that.
var outcomeNames = [...]string{
	"pass_host",             // for nobody of ours
	"pass_multicast",        // multicast or broadcast destination
	"pass_port",             // for a VM whose frames are not steered
	"pass_no_socket",        // for a VM, but the queue has no socket
	"pass_vlan_accelerated", // for a VM, the tag outside the frame, and no room to hand it on
	"pass_vlan_foreign",     // a service tag, or a tag inside an accelerated or priority tag
	"redirect",              // sent to the socket
	"rx_share",              // dropped: its VM has its share of the RX ring
	"pass_hang",             // for a VM with FlagFailOpen, and the worker hangs
	"drop_hang",             // dropped: for another VM, and a worker that hangs has left no more of the fill ring
	"pass_backup",           // by the backup of a bond, which drops all but what it needs itself
	"no_metadata",           // of these: without metadata
	"flow_lost",             // TCP frames the flow map had no room for
	"vlan_unreadable",       // it could not be read whether a tag was taken out
}

// Outcomes returns how many frames ended in which way, by name (see outcomeNames), summed over the CPUs.
func (p *Program) Outcomes() (map[string]uint64, error) {
	return sumByName(p.outcomes, outcomeNames[:])
}

// sumByName reads a per-CPU array whose entries have names.
func sumByName(m *ebpf.Map, names []string) (map[string]uint64, error) {
	out := make(map[string]uint64, len(names))
	var perCPU []uint64
	for i, name := range names {
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("bpf: counters: %w", err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out[name] = sum
	}
	return out, nil
}

// SetPort adds or changes a VM. Frames on their way may still carry the old value. Error: ErrFull.
func (p *Program) SetPort(k PortKey, v PortValue) error {
	err := p.ports.Put(k, v)
	switch {
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("xdp: port: %w (%d)", ErrFull, p.ports.MaxEntries())
	case err != nil:
		return fmt.Errorf("xdp: port: %w", err)
	}
	return nil
}

// DeletePort removes a VM. Frames on their way may still carry it. Error: ErrNoPort.
func (p *Program) DeletePort(k PortKey) error {
	err := p.ports.Delete(k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("xdp: port: %w", ErrNoPort)
	}
	if err != nil {
		return fmt.Errorf("xdp: port: %w", err)
	}
	return nil
}

// SetBackup says whether the interface is the backup of a bond. What comes in for VMs by a backup is left to the bond, which drops it. It
// holds for the next frame.
func (p *Program) SetBackup(backup bool) error {
	d := device{}
	if backup {
		d.Backup = 1
	}
	if err := p.device.Put(uint32(0), d); err != nil {
		return fmt.Errorf("xdp: backup: %w", err)
	}
	return nil
}

// SetFlows says in which map (Flows.VM) the frames of the VM with a meta.PortID are counted. A frame that can be counted nowhere is a
// flow_lost. The kernel waits for the runs of the program that are under way, so when this returns nobody counts in the map before.
func (p *Program) SetFlows(id uint32, m *ebpf.Map) error {
	if p.countsIn(id, m) { // an adopted program does
		return nil
	}
	err := p.beginRows(id, m)
	if err == nil {
		err = p.flows.Put(id, m)
	}
	if err != nil {
		return fmt.Errorf("xdp: flows: %w", err)
	}
	return nil
}

// EndFlows undoes SetFlows, as is due when the VM goes, behind DeletePort: when it returns, all that was counted is in m. A VM whose frames
// are counted nowhere is no error. The caller has m: only CAP_SYS_ADMIN would open it by its number, and the service has not got that.
func (p *Program) EndFlows(id uint32, m *ebpf.Map) error {
	if err := p.endFlows(id, m); err != nil {
		return fmt.Errorf("xdp: flows: %w", err)
	}
	return nil
}

// countsIn tells whether the frames of a VM are counted in that map already.
func (p *Program) countsIn(id uint32, m *ebpf.Map) bool {
	var now uint32
	if p.flows.Lookup(id, &now) != nil {
		return false
	}
	return mapID(m) == now
}

// SetExcluded makes tcpPorts the TCP ports, of either end, that steering leaves alone for the VMs with that
// PortValue.Port and FlagExcludes. It replaces the set before; nil empties it, as is due when the VM goes. A port that is
// in both sets stays excluded all the while, and new ones are there before old ones go. After an error the old set is still
// there, perhaps with more.
// Error: ErrTooManyExcluded.
func (p *Program) SetExcluded(port uint32, tcpPorts []uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, want := p.excludes[port], slices.Compact(slices.Sorted(slices.Values(tcpPorts)))
	added := without(want, old)
	for i, n := range added {
		if err := p.excluded.Put(excludedKey{Port: port, TCPPort: n}, uint8(1)); err != nil {
			if errors.Is(err, unix.E2BIG) {
				err = fmt.Errorf("%w (%d)", ErrTooManyExcluded, p.excluded.MaxEntries())
			}
			return errors.Join(fmt.Errorf("xdp: exclude: TCP port %d: %w", n, err), p.include(port, added[:i]))
		}
	}
	if err := p.include(port, without(old, want)); err != nil {
		p.excludes[port] = slices.Sorted(slices.Values(append(added, old...))) // so the next call can finish
		return err
	}
	if p.excludes[port] = want; len(want) == 0 {
		delete(p.excludes, port)
	}
	return nil
}

// without returns what of a is not in b; both are sorted.
func without(a, b []uint16) (out []uint16) {
	for _, n := range a {
		if _, ok := slices.BinarySearch(b, n); !ok {
			out = append(out, n)
		}
	}
	return out
}

// include takes TCP ports out of the excluded set. The lock is held.
func (p *Program) include(port uint32, tcpPorts []uint16) error {
	for _, n := range tcpPorts {
		err := p.excluded.Delete(excludedKey{Port: port, TCPPort: n})
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("xdp: include: TCP port %d: %w", n, err)
		}
	}
	return nil
}

// SetSocket makes fd, an AF_XDP socket bound to this interface and queue, the target of the queue's frames. The kernel
// takes the entry out again when the socket is closed.
func (p *Program) SetSocket(queue, fd int) error {
	if queue < 0 || queue >= int(p.xsks.MaxEntries()) {
		return fmt.Errorf("xdp: socket: queue %d of %d: %w", queue, p.xsks.MaxEntries(), ErrNoDevice)
	}
	if err := p.xsks.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("xdp: socket of queue %d: %w", queue, err)
	}
	return nil
}

// ClearSocket removes the queue's socket: its frames are passed to the kernel. Clearing twice is no error.
func (p *Program) ClearSocket(queue int) error {
	err := p.xsks.Delete(uint32(queue))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("xdp: socket of queue %d: %w", queue, err)
	}
	return nil
}
