package controller

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
)

// device is an interface by whose receive queues the frames of an uplink come in: the uplink itself, or a member of a bond.
type device struct {
	facts   *netdev.Facts
	prog    program
	native  bool   // XDP runs in the driver
	backup  bool   // of a bond: what comes in by it is the bond's to drop
	warning string // what its mode of XDP costs, "" for nothing
}

// openDevice loads and attaches the XDP program of a device. On failure nothing is left behind.
func (u *uplink) openDevice(f *netdev.Facts) (*device, error) {
	d := &device{facts: f}
	if m := u.member(f.Index); m != nil {
		d.backup = !m.Active
	}
	if err := d.loadProgram(ours(u.prog), u.rings.Frames > 0); err != nil {
		return nil, u.lacksJumbo(f, err)
	}
	return d, nil
}

// loadProgram tries native XDP, then generic, and keeps what generic mode costs as a warning.
func (d *device) loadProgram(beside *bpf.Program, jumbo bool) error {
	var first error
	for _, native := range []bool{true, false} {
		p, err := bpf.Load(bpf.LoadOptions{Ifindex: d.facts.Index, Queues: d.facts.RxQueues, Native: native, Beside: beside, Jumbo: jumbo})
		if err != nil {
			return err
		}
		if err = p.SetBackup(d.backup); err == nil {
			err = p.Attach(native)
		}
		if err == nil {
			d.prog, d.native = p, native
			if !native {
				d.warning = fmt.Sprintf("generic XDP: the driver of %s has no native mode or refused it%s: every frame of it costs more, and the kernel's own GRO on it is off", d.facts.Name, reason(first))
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

// addDevice makes a device one of the uplink's.
func (u *uplink) addDevice(d *device) {
	u.devs = append(u.devs, d)
	u.prog = u.devs[0].prog
}

// want is what the device must be for the program and the sockets that are on it, which have that room for frames.
func (d *device) want(room frameRoom) netdev.Want {
	w := netdev.Want{RxQueues: d.facts.RxQueues, MaxMTU: room.maxMTU(d.facts.Driver)}
	if d.prog.Mode() != "" {
		w.Program = d.prog.ID()
	}
	return w
}

// eachDevice turns to every device, and goes on when one fails.
func (u *uplink) eachDevice(fn func(d *device) error) error {
	var errs []error
	for _, d := range u.devs {
		errs = append(errs, fn(d))
	}
	return errors.Join(errs...)
}
