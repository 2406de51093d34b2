package user

import (
	"errors"
	"fmt"
	"time"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/vring"
)

// change runs fn, which alters what is running; pause says that it goes on then.
// The device may prepare, unless that was asked too often: then the front-end waits
// first.
func (s *Session) change(pause bool, fn func() error) error {
	time.Sleep(s.pace.wait(time.Now()))
	s.dev.BeforeChange(pause)
	err := fn()
	s.publish()
	if err == nil {
		s.dev.AfterChange()
	}
	return err
}

// changeAll runs fn while every ring is stopped and starts those again that ran.
// With none running it just runs fn.
func (s *Session) changeAll(fn func() error) error {
	var ran []int
	for i := range s.rings {
		if s.rings[i].running {
			ran = append(ran, i)
		}
	}
	if len(ran) == 0 {
		return fn()
	}
	return s.change(true, func() error {
		for _, i := range ran {
			if err := s.stopRing(i); err != nil {
				return err
			}
		}
		if err := fn(); err != nil {
			return err
		}
		for _, i := range ran {
			if err := s.startRing(i, s.join); err != nil {
				return err
			}
		}
		return nil
	})
}

// stopRing stops a running ring and keeps where it stopped.
func (s *Session) stopRing(i int) error {
	base, err := s.dev.StopRing(i)
	if err != nil {
		return err
	}
	r := &s.rings[i]
	r.base, r.running = base, false
	dev := r.dev
	r.dev = nil
	return dev.Close() // of no effect where the device did so, as it has to
}

// maybeStart starts a ring once everything about it is known. Front-ends differ
// in the order of their messages; SET_VRING_KICK is what asks for the start, as
// in libvhost-user and DPDK, not the first kick.
func (s *Session) maybeStart(i int) error {
	if s.rings[i].running || !s.ready(i) {
		return nil
	}
	return s.change(true, func() error { return s.startRing(i, s.join) })
}

// ready says whether all that a ring needs to run is known.
func (s *Session) ready(i int) bool {
	r := &s.rings[i]
	return r.kicked && r.num != 0 && r.hasAddr && s.mem.Len() > 0
}

// startRing makes the ring run from where join finds its device to be.
func (s *Session) startRing(i int, join func(i int, dev vring.Device) (rejoined bool, err error)) error {
	s.recall(i)
	r := &s.rings[i]
	l, err := s.layout(r)
	if err != nil {
		return err
	}
	dev, err := vring.NewDevice(s.mem, l, s.features, r.base)
	switch {
	case errors.Is(err, guestmem.ErrFault):
		return fmt.Errorf("ring %d: %w", i, err)
	case err != nil:
		return fmt.Errorf("ring %d: %w: %w", i, ErrRingAddress, err)
	}
	rejoined, err := join(i, dev)
	if err != nil {
		_ = dev.Close()
		return err
	}
	r.dev, r.running = dev, true // first: should StartRing end in a panic, a mistake of ours, the ring is stopped with the others
	err = s.dev.StartRing(RingSetup{Index: i, Size: r.num, Enabled: r.enabled, Features: s.features, Dev: dev, Kick: r.kick, Call: r.call, Rejoined: rejoined})
	if err != nil {
		r.dev, r.running = nil, false
		_ = dev.Close() // s.mem has a hold: nothing is unmapped
		return fmt.Errorf("ring %d: %w", i, err)
	}
	return nil
}

// join lets dev go on where the ring is: at the front-end's base, or where a device of
// the session before, which had begun with the same message, has left it.
func (s *Session) join(i int, dev vring.Device) (rejoined bool, err error) {
	if s.again {
		return s.rejoin(i, dev)
	}
	return s.resume(i, dev)
}

// resume lets dev go on where the ring stands, and says what cannot be mended. A
// ring that we have stopped ourselves stands at its base: nothing to do or to say.
func (s *Session) resume(i int, dev vring.Device) (rejoined bool, err error) {
	var was vring.Resumption
	if err := dev.Touch(func() { was = dev.Resume() }); err != nil {
		return false, fmt.Errorf("ring %d: %w", i, err)
	}
	if was.Moved > 0 {
		s.cfg.Logf("ring %d: the front-end's base leaves %d chains behind; goes on at used.idx, where the ring was left", i, was.Moved)
	}
	r := &s.rings[i]
	r.lost = was.Lost
	if r.warn(i); r.warning != "" {
		s.cfg.Logf("warning: %s", r.warning)
	}
	return false, nil
}

// warn says what a base that left chains behind, or a front-end that forgets, means for the guest.
func (r *ring) warn(i int) {
	switch {
	case r.forgotten:
		r.warning = fmt.Sprintf("ring %d: the front-end says that its guest has the legacy interface, and the ring is not laid out so: QEMU before 8.0 forgets what is negotiated while nobody is connected; restart the guest's driver", i)
	case r.lost == 0:
		r.warning = ""
	case r.lost == r.num:
		r.warning = fmt.Sprintf("ring %d can never move: the front-end's base leaves all %d chains of it behind; restart the guest's driver", i, r.lost)
	default:
		r.warning = fmt.Sprintf("ring %d: the front-end's base leaves %d chains behind, which the guest waits for; restart its driver", i, r.lost)
	}
}

// layout translates the ring's addresses, which are the front-end's own. Each
// part must lie in one region, so that it is one slice.
func (s *Session) layout(r *ring) (l vring.Layout, err error) {
	l.Num = r.num
	desc, avail, used := vring.AreaBytes(s.features, r.num)
	for _, part := range []struct {
		dst  *[]byte
		addr uint64
		size int
	}{
		{&l.Desc, r.addr.Desc, desc},
		{&l.Avail, r.addr.Avail, avail},
		{&l.Used, r.addr.Used, used},
	} {
		if *part.dst, err = s.mem.SliceUVA(part.addr, uint64(part.size)); err != nil {
			return l, fmt.Errorf("%w: %w", ErrRingAddress, err)
		}
	}
	return l, nil
}

// ringState decodes a ring state message and finds the ring.
func (s *Session) ringState(m *Message) (i int, num uint32, err error) {
	var v VringState
	if err := v.Decode(m.Payload); err != nil {
		return 0, 0, err
	}
	return int(v.Index), v.Num, s.checkIndex(v.Index)
}

func (s *Session) checkIndex(i uint32) error {
	if i >= uint32(len(s.rings)) {
		return fmt.Errorf("ring %d of %d: %w", i, len(s.rings), ErrRingIndex)
	}
	return nil
}

func (s *Session) setVringNum(m *Message) ([]byte, error) {
	i, num, err := s.ringState(m)
	if err != nil {
		return nil, err
	}
	if num > vring.MaxSize || !vring.ValidSize(s.features, int(num)) {
		return nil, fmt.Errorf("ring %d, size %d: %w", i, num, ErrRingSize)
	}
	r := &s.rings[i]
	if r.running && r.num != int(num) {
		return nil, fmt.Errorf("ring %d: size: %w", i, ErrRingRunning)
	}
	r.num = int(num)
	return nil, s.maybeStart(i)
}

func (s *Session) setVringBase(m *Message) ([]byte, error) {
	i, num, err := s.ringState(m)
	if err != nil {
		return nil, err
	}
	base, err := vring.ParseBase(s.features, num)
	if err != nil {
		return nil, fmt.Errorf("ring %d, base %d: %w: %w", i, num, ErrBadPayload, err)
	}
	if s.rings[i].running {
		return nil, fmt.Errorf("ring %d: base: %w", i, ErrRingRunning)
	}
	s.rings[i].base = base
	return nil, nil
}

// setVringAddr on a running ring can only toggle logging, which we do not offer:
// the same addresses again are accepted.
func (s *Session) setVringAddr(m *Message) ([]byte, error) {
	var a VringAddr
	if err := a.Decode(m.Payload); err != nil {
		return nil, err
	}
	if err := s.checkIndex(a.Index); err != nil {
		return nil, err
	}
	r := &s.rings[a.Index]
	if r.running && (a.Desc != r.addr.Desc || a.Avail != r.addr.Avail || a.Used != r.addr.Used) {
		return nil, fmt.Errorf("ring %d: address: %w", a.Index, ErrRingRunning)
	}
	r.addr, r.hasAddr = a, true
	return nil, s.maybeStart(int(a.Index))
}

// getVringBase stops the ring. Once the reply is out, neither memory nor
// eventfds of the ring are touched.
func (s *Session) getVringBase(m *Message) ([]byte, error) {
	i, _, err := s.ringState(m)
	if err != nil {
		return nil, err
	}
	r := &s.rings[i]
	if r.running {
		if err := s.change(false, func() error { return s.stopRing(i) }); err != nil {
			return nil, err
		}
	}
	r.kicked = false
	closeEvents(&r.kick, &r.call)
	return VringState{Index: uint32(i), Num: r.base.Num()}.Append(nil), nil
}

func (s *Session) setVringEnable(m *Message) ([]byte, error) {
	i, num, err := s.ringState(m)
	if err != nil {
		return nil, err
	}
	if num > 1 {
		return nil, fmt.Errorf("ring %d, enable %d: %w", i, num, ErrBadPayload)
	}
	return nil, s.enable(i, num == 1)
}

// enable remembers the switch also for a ring that does not run: QEMU sends it
// before anything else about the ring, and repeatedly.
func (s *Session) enable(i int, on bool) error {
	r := &s.rings[i]
	if r.enabled == on {
		return nil
	}
	set := func() error {
		r.enabled = on
		return s.dev.EnableRing(i, on)
	}
	if r.running {
		return s.change(on || s.receives(i), set)
	}
	return set()
}

// receives says whether the guest receives on a ring other than i.
func (s *Session) receives(i int) bool {
	for j := 0; j < len(s.rings); j += 2 {
		if j != i && s.rings[j].running && s.rings[j].enabled {
			return true
		}
	}
	return false
}

// fdWord decodes the message that carries a ring's eventfd; e is nil if the
// front-end says that there is none.
func (s *Session) fdWord(m *Message) (i int, e *EventFD, err error) {
	v, err := U64(m.Payload)
	if err != nil {
		return 0, nil, err
	}
	if err := s.checkIndex(uint32(v & fdWordIndex)); err != nil {
		return 0, nil, err
	}
	i = int(v & fdWordIndex)
	if v&fdWordNoFD != 0 {
		return i, nil, nil
	}
	if len(m.FDs) != 1 {
		return 0, nil, fmt.Errorf("ring %d: %d descriptors for 1: %w", i, len(m.FDs), ErrFDCount)
	}
	adopt := AdoptEventFD
	if m.Request == SetVringKick {
		adopt = AdoptKick
	}
	if e, err = adopt(m.TakeFD()); err != nil {
		return 0, nil, fmt.Errorf("ring %d: %w", i, err)
	}
	s.serial++
	e.serial = s.serial
	return i, e, nil
}

// setVringKick refuses a ring without a kick: nobody would look at it before
// something else wakes the worker, and no front-end that is known asks for it.
func (s *Session) setVringKick(m *Message) ([]byte, error) {
	i, e, err := s.fdWord(m)
	if err != nil {
		return nil, err
	}
	if e == nil { // bit 8: "polling should be used instead of waiting for the kick"
		return nil, fmt.Errorf("ring %d: polling instead of a kick; give an eventfd: %w", i, ErrUnsupported)
	}
	r := &s.rings[i]
	if !r.running {
		closeEvents(&r.kick)
		r.kick, r.kicked = e, true
		return nil, s.maybeStart(i)
	}
	return nil, s.change(true, func() error {
		err := s.stopRing(i)
		if err != nil {
			closeEvents(&e)
			return err
		}
		closeEvents(&r.kick) // BeforeChange has returned: nobody polls it
		r.kick = e
		return s.startRing(i, s.join)
	})
}

func (s *Session) setVringCall(m *Message) ([]byte, error) {
	i, e, err := s.fdWord(m)
	if err != nil {
		return nil, err
	}
	r := &s.rings[i]
	if r.running {
		if err := s.dev.SetCall(i, e); err != nil {
			closeEvents(&e)
			return nil, err
		}
	}
	closeEvents(&r.call)
	r.call = e
	return nil, nil
}

// setVringErr keeps the eventfd that tells the front-end of a broken ring; we
// close the connection instead, which no front-end can overlook.
func (s *Session) setVringErr(m *Message) ([]byte, error) {
	i, e, err := s.fdWord(m)
	if err != nil {
		return nil, err
	}
	closeEvents(&s.rings[i].err)
	s.rings[i].err = e
	return nil, nil
}
