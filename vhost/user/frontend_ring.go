package user

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// Where a Frontend's memory appears to the guest and to itself. They differ, so
// that a back-end that mixes the two up is caught.
const (
	frontGPA = 1 << 20
	frontUVA = 0x7f00_0000_0000
)

// frontMemory is a memfd and what of it is taken.
type frontMemory struct {
	fd     int
	b      []byte
	next   int
	shared *Conn // where the region was added
}

func newFrontMemory(size int) (*frontMemory, error) {
	fd, err := unix.MemfdCreate("rscctl-guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("front-end: memfd: %w", err)
	}
	m := &frontMemory{fd: fd}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("front-end: memfd of %d bytes: %w", size, err), m.close())
	}
	if m.b, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(fmt.Errorf("front-end: mmap: %w", err), m.close())
	}
	return m, nil
}

func (m *frontMemory) region() MemRegion {
	return MemRegion{GPA: frontGPA, Size: uint64(len(m.b)), UVA: frontUVA}
}

func (m *frontMemory) alloc(n, align int) (gpa uint64, mem []byte, err error) {
	at := (m.next + align - 1) &^ (align - 1)
	if n < 0 || n > len(m.b)-at {
		return 0, nil, fmt.Errorf("front-end: %d bytes: %w", n, ErrNoMemory)
	}
	m.next = at + n
	return frontGPA + uint64(at), m.b[at : at+n : at+n], nil
}

func (m *frontMemory) close() error {
	var errs []error
	if m.b != nil {
		errs = append(errs, unix.Munmap(m.b))
		m.b = nil
	}
	return errors.Join(append(errs, unix.Close(m.fd))...)
}

// Ring is the driver side of one ring. Driver posts and reaps; after a Publish
// that returns true the caller kicks.
type Ring struct {
	Driver *vring.Driver

	index      int
	base       uint16
	layout     vring.Layout
	gpa        uint64
	area       vring.IndirectArea
	kick, call *EventFD
}

// Index is the ring's number in the protocol: RX of pair p is 2p, TX 2p+1.
func (r *Ring) Index() int { return r.index }

// Kick tells the back-end that there are buffers.
func (r *Ring) Kick() { _ = r.kick.Signal() }

// KickFD is the eventfd that Kick writes to.
func (r *Ring) KickFD() int { return r.kick.FD() }

// CallFD is the eventfd that the back-end writes to; poll it for reading.
func (r *Ring) CallFD() int { return r.call.FD() }

// AckCall reads the calls since the last time, 0 if there were none. It does
// not wait.
func (r *Ring) AckCall() uint64 { return r.call.Drain() }

// Layout returns the ring's memory, for tests that break its rules.
func (r *Ring) Layout() vring.Layout { return r.layout }

func (f *Frontend) makeRings() error {
	for i := range 2 * f.cfg.Pairs {
		r := &Ring{index: i}
		f.rings = append(f.rings, r)
		gpa, mem, err := f.mem.alloc(vring.Bytes(f.cfg.RingSize), 4096)
		if err != nil {
			return err
		}
		r.gpa = gpa
		if r.layout, err = vring.Split(mem, f.cfg.RingSize); err != nil {
			return err
		}
		if n := f.cfg.Indirect; n > 0 {
			gpa, mem, err := f.mem.alloc(vring.IndirectBytes(f.cfg.RingSize, n), 64)
			if err != nil {
				return err
			}
			r.area = vring.IndirectArea{Mem: mem, GPA: gpa, Entries: n}
		}
		if r.kick, err = NewEventFD(); err != nil {
			return err
		}
		if r.call, err = NewEventFD(); err != nil {
			return err
		}
		if err := r.reset(f.features); err != nil {
			return err
		}
	}
	return nil
}

// reset makes the ring as new under the given features.
func (r *Ring) reset(features virtio.Features) (err error) {
	r.base = 0
	r.Driver, err = vring.NewDriver(r.layout, features, r.area)
	return err
}

func (r *Ring) addr() VringAddr {
	base := r.gpa - frontGPA + frontUVA
	avail, used := vring.Offsets(r.layout.Num)
	return VringAddr{Index: uint32(r.index), Desc: base, Avail: base + uint64(avail), Used: base + uint64(used), LogOffset: r.gpa + uint64(used)}
}

// usedIndex is what the back-end has published so far.
func (r *Ring) usedIndex() uint16 { return binary.LittleEndian.Uint16(r.layout.Used[2:]) }

func (r *Ring) close() error {
	var errs []error
	for _, e := range []*EventFD{r.kick, r.call} {
		if e != nil {
			errs = append(errs, e.Close())
		}
	}
	return errors.Join(errs...)
}

// SetCall gives the back-end the ring's call eventfd, or takes it away: then
// the driver polls.
func (f *Frontend) SetCall(r *Ring, on bool) error {
	if on {
		return f.ack(SetVringCall, AppendU64(nil, uint64(r.index)), r.call.FD())
	}
	return f.ack(SetVringCall, AppendU64(nil, uint64(r.index)|fdWordNoFD))
}
