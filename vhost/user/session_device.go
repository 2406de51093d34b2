package user

import (
	"errors"
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// handler answers one kind of request. run returns the reply's payload, or nil
// for a request that has none of its own.
type handler struct {
	size int // bytes of payload; -1 when run checks
	run  func(s *Session, m *Message) ([]byte, error)
}

// handlers is indexed by Request; holes are unknown requests. Descriptors that a
// handler does not take are closed after it.
var handlers = [numRequests]handler{
	GetFeatures:         {0, (*Session).getFeatures},
	SetFeatures:         {sizeU64, (*Session).setFeatures},
	SetOwner:            {0, ignore},
	ResetOwner:          {0, (*Session).resetOwner},
	SetMemTable:         {-1, (*Session).setMemTable},
	SetLogBase:          {sizeLog, unsupported}, // LOG_SHMFD
	SetLogFD:            {-1, ignore},
	SetVringNum:         {sizeVringState, (*Session).setVringNum},
	SetVringAddr:        {sizeVringAddr, (*Session).setVringAddr},
	SetVringBase:        {sizeVringState, (*Session).setVringBase},
	GetVringBase:        {sizeVringState, (*Session).getVringBase},
	SetVringKick:        {sizeU64, (*Session).setVringKick},
	SetVringCall:        {sizeU64, (*Session).setVringCall},
	SetVringErr:         {sizeU64, (*Session).setVringErr},
	GetProtocolFeatures: {0, (*Session).getProtocolFeatures},
	SetProtocolFeatures: {sizeU64, (*Session).setProtocolFeatures},
	GetQueueNum:         {0, (*Session).getQueueNum},
	SetVringEnable:      {sizeVringState, (*Session).setVringEnable},
	SendRARP:            {sizeU64, unsupported}, // RARP: guests announce themselves
	NetSetMTU:           {sizeU64, (*Session).netSetMTU},
	SetBackendReqFD:     {-1, unsupported}, // BACKEND_REQ
	IOTLBMsg:            {-1, unsupported}, // ACCESS_PLATFORM
	SetVringEndian:      {-1, unsupported}, // CROSS_ENDIAN
	GetConfig:           {-1, unsupported}, // CONFIG
	SetConfig:           {-1, unsupported},
	GetInflightFD:       {-1, unsupported}, // INFLIGHT_SHMFD
	SetInflightFD:       {-1, unsupported},
	ResetDevice:         {0, (*Session).resetDevice},
	GetMaxMemSlots:      {0, (*Session).getMaxMemSlots},
	AddMemReg:           {sizeSingleRegion, (*Session).addMemReg},
	RemMemReg:           {sizeSingleRegion, (*Session).remMemReg},
	SetStatus:           {sizeU64, (*Session).setStatus},
	GetStatus:           {0, (*Session).getStatus},
}

func ignore(*Session, *Message) ([]byte, error) { return nil, nil }

func unsupported(*Session, *Message) ([]byte, error) { return nil, ErrUnsupported }

// protocolBit is always offered: without it QEMU never enables a network ring.
const protocolBit = virtio.Features(1 << virtio.FProtocolFeatures)

func (s *Session) getFeatures(*Message) ([]byte, error) {
	return AppendU64(nil, uint64(s.cfg.Features|protocolBit)), nil
}

// setFeatures arrives once per queue pair and again after every restart of the
// guest's driver. Rings that run meanwhile go on under the new features.
//
// Contradictions are refused, with one exception for front-ends that do not wait
// for an answer: QEMU's guest_tso4=off,guest_tso6=off leaves guest_ecn on, and
// Linux accepts that bit by itself.
func (s *Session) setFeatures(m *Message) ([]byte, error) {
	v, err := U64(m.Payload)
	if err != nil {
		return nil, err
	}
	acked := virtio.Features(v)
	if m.Flags&FlagNeedReply == 0 {
		acked = acked.WithoutLoneECN()
	}
	if extra := acked &^ (s.cfg.Features | protocolBit); extra != 0 {
		return nil, fmt.Errorf("%v: %w", extra.Names(), ErrFeatures)
	}
	if err := acked.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFeatures, err)
	}
	if f := acked &^ protocolBit; f != s.features || !s.negotiated {
		err := s.changeAll(func() error {
			s.features, s.negotiated = f, true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if acked&protocolBit != 0 {
		return nil, nil
	}
	// A front-end that knows no protocol features knows no SET_VRING_ENABLE.
	for i := range s.rings {
		if err := s.enable(i, true); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (s *Session) getProtocolFeatures(*Message) ([]byte, error) {
	return AppendU64(nil, uint64(s.cfg.Protocol)), nil
}

func (s *Session) setProtocolFeatures(m *Message) ([]byte, error) {
	v, err := U64(m.Payload)
	if err != nil {
		return nil, err
	}
	if extra := ProtocolFeatures(v) &^ s.cfg.Protocol; extra != 0 {
		return nil, fmt.Errorf("protocol features %#x: %w", uint64(extra), ErrFeatures)
	}
	s.protocol = ProtocolFeatures(v)
	return nil, nil
}

func (s *Session) getQueueNum(*Message) ([]byte, error) {
	return AppendU64(nil, uint64(s.cfg.MaxPairs)), nil
}

// resetOwner is deprecated; libvhost-user and the specification's advice are to
// disable the rings.
func (s *Session) resetOwner(*Message) ([]byte, error) {
	for i := range s.rings {
		if err := s.enable(i, false); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// resetDevice forgets all but the connection and the memory.
func (s *Session) resetDevice(*Message) ([]byte, error) {
	return nil, s.change(false, func() error {
		for i := range s.rings {
			r := &s.rings[i]
			if r.running {
				if err := s.stopRing(i); err != nil {
					return err
				}
			}
			if err := s.dev.EnableRing(i, false); err != nil {
				return err
			}
			closeEvents(&r.kick, &r.call, &r.err)
			*r = ring{}
		}
		s.features, s.negotiated, s.status = 0, false, 0
		return nil
	})
}

// The smallest MTU is that of IPv4 (RFC 791), the largest what the field holds.
const (
	leastMTU   = 68
	largestMTU = 65535
)

func (s *Session) netSetMTU(m *Message) ([]byte, error) {
	v, err := U64(m.Payload)
	if err != nil {
		return nil, err
	}
	most := uint64(largestMTU)
	if s.cfg.MaxMTU > 0 {
		most = min(most, uint64(s.cfg.MaxMTU))
	}
	if v < leastMTU || v > most {
		// QEMU goes on without a word, and the guest's driver never starts: say it to whoever looks.
		s.refused = fmt.Sprintf("the front-end wants an MTU of %d and was refused: %d to %d can be had: lower the VM's host_mtu, or raise the MTU of the interface", v, leastMTU, most)
		return nil, fmt.Errorf("%d: %w: %d to %d can be had", v, ErrMTU, leastMTU, most)
	}
	s.mtu, s.refused = int(v), ""
	return nil, nil
}

// setStatus only keeps the byte: QEMU 7.2 writes 0 before it asks for the ring
// bases, so 0 cannot mean that they are void.
func (s *Session) setStatus(m *Message) ([]byte, error) {
	v, err := U64(m.Payload)
	if err != nil {
		return nil, err
	}
	if v > 0xff {
		return nil, fmt.Errorf("status %#x: %w", v, ErrBadPayload)
	}
	s.status = uint8(v)
	return nil, nil
}

func (s *Session) getStatus(*Message) ([]byte, error) {
	return AppendU64(nil, uint64(s.status)), nil
}

func (s *Session) getMaxMemSlots(*Message) ([]byte, error) {
	return AppendU64(nil, guestmem.MaxRegions), nil
}

// setMemTable replaces all memory. Files that stay keep their mapping.
func (s *Session) setMemTable(m *Message) ([]byte, error) {
	regions, err := DecodeMemTable(m.Payload)
	if err != nil {
		return nil, err
	}
	if len(m.FDs) != len(regions) {
		return nil, fmt.Errorf("%d descriptors for %d regions: %w", len(m.FDs), len(regions), ErrFDCount)
	}
	want := make([]guestmem.Region, len(regions))
	for i, r := range regions {
		want[i] = guestmem.Region{GPA: r.GPA, Size: r.Size, UVA: r.UVA, Offset: r.Offset, FD: m.FDs[i]}
	}
	table, err := s.mem.Replace(want)
	return nil, s.setMemory(table, err)
}

// addMemReg takes a region that is there already for what it is: QEMU before 8.0
// tells every region once for each queue pair.
func (s *Session) addMemReg(m *Message) ([]byte, error) {
	r, err := DecodeSingleRegion(m.Payload)
	if err != nil {
		return nil, err
	}
	if len(m.FDs) != 1 {
		return nil, fmt.Errorf("%d descriptors for 1 region: %w", len(m.FDs), ErrFDCount)
	}
	region := guestmem.Region{GPA: r.GPA, Size: r.Size, UVA: r.UVA, Offset: r.Offset, FD: m.FDs[0]}
	if s.mem.Has(region) {
		return nil, nil
	}
	table, err := s.mem.Add(region)
	if err := s.setMemory(table, err); err != nil {
		return nil, err
	}
	s.removed = slices.DeleteFunc(s.removed, func(o MemRegion) bool { return o == place(r) })
	return nil, nil
}

// remMemReg: QEMU before 8.0 takes a region away once for each queue pair, too.
func (s *Session) remMemReg(m *Message) ([]byte, error) {
	r, err := DecodeSingleRegion(m.Payload)
	if err != nil {
		return nil, err
	}
	table, err := s.mem.Remove(guestmem.Region{GPA: r.GPA, Size: r.Size, UVA: r.UVA})
	if errors.Is(err, guestmem.ErrNoSuchRegion) && slices.Contains(s.removed, place(r)) {
		return nil, nil
	}
	if err := s.setMemory(table, err); err != nil {
		return nil, err
	}
	if len(s.removed) == guestmem.MaxRegions {
		s.removed = slices.Delete(s.removed, 0, 1)
	}
	s.removed = append(s.removed, place(r))
	return nil, nil
}

// place is what names a region in REM_MEM_REG, which front-ends fill differently
// in the rest.
func place(r MemRegion) MemRegion { return MemRegion{GPA: r.GPA, Size: r.Size, UVA: r.UVA} }

// setMemory puts table in place of the one in use: readers stop, rings move to
// the new addresses, and only then the old mappings go, because the reply lets
// the front-end use that memory otherwise.
//
// However far it comes, one of the two tables is the session's afterwards and
// the other is let go of: a ring that did not stop has its own hold.
func (s *Session) setMemory(table *guestmem.Table, refused error) (err error) {
	switch {
	case errors.Is(refused, guestmem.ErrTooMany):
		return fmt.Errorf("%w: %w", ErrTooManySlots, refused)
	case errors.Is(refused, guestmem.ErrNoSuchRegion):
		return fmt.Errorf("%w: %w", ErrNoRegion, refused)
	case refused != nil:
		return fmt.Errorf("%w: %w", ErrMemory, refused)
	}
	spare := table
	defer func() {
		if cerr := spare.Close(); err == nil {
			err = cerr
		}
	}()
	err = s.changeAll(func() error {
		s.mem, spare = spare, s.mem
		return nil
	})
	if err != nil {
		return err
	}
	for i := range s.rings {
		if err := s.maybeStart(i); err != nil {
			return err
		}
	}
	return nil
}
