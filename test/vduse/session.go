package vduse

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// session is what is there from the driver's DRIVER_OK to its reset.
type session struct {
	d        *Device
	features virtio.Features
	stop     *user.EventFD
	relays   []*relay
	mapped   [][]byte // the driver's rings
	started  bool     // the back-end has rings; only serve, and close behind it
	wg       sync.WaitGroup
}

// newSession takes the driver's rings, and serves them from the first kick on.
func (d *Device) newSession(f virtio.Features) (_ *session, err error) {
	s := &session{d: d, features: f &^ deviceFeatures}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.stop, err = user.NewEventFD(); err != nil {
		return nil, err
	}
	for i := range ringSizes {
		if err := s.addRelay(uint32(i)); err != nil {
			return nil, fmt.Errorf("ring %d: %w", i, err)
		}
	}
	s.wg.Go(func() {
		if err := s.serve(); err != nil {
			d.fail(err)
		}
	})
	return s, nil
}

// addRelay has a ring's kicks go to a relay, which gets the driver's memory of it.
func (s *session) addRelay(index uint32) (err error) {
	r := &relay{
		stop: s.stop.FD(), bounce: address(s.d.bounce), gpa: s.d.gpa,
		inject: func() error {
			_, err := ioctl(s.d.fd, vqInjectIRQ, "VDUSE_VQ_INJECT_IRQ", &index)
			return err
		},
	}
	if r.kick, err = user.NewEventFD(); err != nil {
		return err
	}
	s.relays = append(s.relays, r)
	if _, err := ioctl(s.d.fd, vqSetupKick, "VDUSE_VQ_SETUP_KICKFD", &vqEventFD{Index: index, FD: int32(r.kick.FD())}); err != nil {
		return err
	}
	q := vqInfo{Index: index}
	if _, err := ioctl(s.d.fd, vqGetInfo, "VDUSE_VQ_GET_INFO", &q); err != nil {
		return err
	}
	r.dev, err = s.openRing(q)
	return err
}

// openRing maps a ring of the driver's. It lies in one piece, whose address is not the bounce pages'.
func (s *session) openRing(q vqInfo) (vring.Device, error) {
	num := int(q.Num)
	e := iotlbEntry{Start: q.Desc, Last: q.Device + uint64(vring.UsedBytes(num)) - 1}
	fd, err := ioctl(s.d.fd, iotlbGetFD, "VDUSE_IOTLB_GET_FD", &e)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, int64(e.Offset), int(e.Last-e.Start+1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	s.mapped = append(s.mapped, mem)
	table, err := guestmem.FromParts(guestmem.Part{Mem: s.d.bounce}, guestmem.Part{GPA: e.Start, Mem: mem})
	if err != nil {
		return nil, err
	}
	defer table.Close() // the ring has a hold
	l := vring.Layout{Num: num}
	for _, area := range []struct {
		to   *[]byte
		iova uint64
		n    int
	}{{&l.Desc, q.Desc, vring.DescBytes(num)}, {&l.Avail, q.Driver, vring.AvailBytes(num)}, {&l.Used, q.Device, vring.UsedBytes(num)}} {
		if *area.to, err = table.Slice(area.iova, uint64(area.n)); err != nil {
			return nil, err
		}
	}
	return vring.NewDevice(table, l, s.features, vring.Position{})
}

// serve waits for the first kick, shows the back-end memory and rings, and moves chains.
func (s *session) serve() error {
	if !s.kicked() {
		return nil
	}
	// Only a driver that has given a buffer away has bounce pages.
	if err := s.d.register(); err != nil {
		return err
	}
	if err := s.d.fe.Renegotiate(s.features); err != nil {
		return err
	}
	if err := s.d.fe.Start(); err != nil {
		return err
	}
	s.started = true
	for i, ring := range []*user.Ring{s.d.fe.RX(0), s.d.fe.TX(0)} {
		r := s.relays[i]
		r.ring = ring
		s.wg.Go(func() {
			if err := r.run(); err != nil {
				s.d.fail(fmt.Errorf("ring %d: %w", i, err))
			}
		})
	}
	return nil
}

// kicked waits for a kick of either ring, and says false when the session ends before.
func (s *session) kicked() bool {
	fds := []unix.PollFd{{Fd: int32(s.stop.FD()), Events: unix.POLLIN}}
	for _, r := range s.relays {
		fds = append(fds, unix.PollFd{Fd: int32(r.kick.FD()), Events: unix.POLLIN})
	}
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return fds[0].Revents == 0
		}
	}
}

// register gives the kernel the front-end's memory for its bounce pages, once for all sessions. What it has copied there before it
// copies over.
func (d *Device) register() error {
	if d.uses {
		return nil
	}
	// The pages are pinned, and no capability lifts this limit for VDUSE.
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return fmt.Errorf("bounce pages: %w", err)
	}
	if _, err := ioctl(d.fd, iotlbRegUMem, "VDUSE_IOTLB_REG_UMEM", &iovaUMem{Addr: address(d.bounce), Size: bounceSize}); err != nil {
		return fmt.Errorf("bounce pages: %w", err)
	}
	d.uses = true
	return nil
}

// close stops the relays, then the back-end's rings. The driver's memory is not touched behind it.
func (s *session) close() {
	if s.stop != nil {
		_ = s.stop.Signal()
	}
	s.wg.Wait()
	if s.started {
		if _, err := s.d.fe.Stop(); err != nil {
			s.d.fail(fmt.Errorf("stop: %w", err))
		}
	}
	for _, r := range s.relays {
		if r.dev != nil {
			_ = r.dev.Close()
		}
		_ = r.kick.Close()
	}
	for _, mem := range s.mapped {
		_ = unix.Munmap(mem)
	}
	if s.stop != nil {
		_ = s.stop.Close()
	}
}
