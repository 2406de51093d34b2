package user

import (
	"errors"
	"fmt"
	"time"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// negotiate asks for features in the order QEMU does.
func (f *Frontend) negotiate(want virtio.Features) error {
	got, err := f.getU64(GetFeatures)
	if err != nil {
		return err
	}
	offered := virtio.Features(got)
	if lack := f.cfg.Need &^ offered; lack != 0 {
		return fmt.Errorf("front-end: %v: %w", lack.Names(), ErrNotOffered)
	}
	f.features = want & offered &^ virtio.Mask(virtio.FProtocolFeatures)
	f.protocol = 0
	if offered.Has(virtio.FProtocolFeatures) {
		got, err := f.getU64(GetProtocolFeatures)
		if err != nil {
			return err
		}
		f.protocol = f.cfg.Protocol & ProtocolFeatures(got)
		if err := f.send(SetProtocolFeatures, AppendU64(nil, uint64(f.protocol))); err != nil {
			return err
		}
	}
	if f.cfg.Pairs > 1 {
		n := uint64(1)
		if f.protocol.Has(ProtoMQ) {
			if n, err = f.getU64(GetQueueNum); err != nil {
				return err
			}
		}
		if n < uint64(f.cfg.Pairs) {
			return fmt.Errorf("front-end: %d queue pairs of %d: %w", n, f.cfg.Pairs, ErrNotOffered)
		}
	}
	return f.send(SetOwner, nil)
}

// Start shows the back-end memory and rings and enables every pair, in the
// order of QEMU's start. After Stop it resumes where the rings stopped.
func (f *Frontend) Start() error {
	if f.cfg.MTU != 0 && f.protocol.Has(ProtoNetMTU) {
		if err := f.ack(NetSetMTU, AppendU64(nil, uint64(f.cfg.MTU))); err != nil {
			return err
		}
	}
	acked := f.features
	if f.protocol != 0 {
		acked |= virtio.Mask(virtio.FProtocolFeatures)
	}
	if err := f.send(SetFeatures, AppendU64(nil, uint64(acked))); err != nil {
		return err
	}
	if err := f.shareMemory(); err != nil {
		return err
	}
	for _, r := range f.rings {
		if err := f.startRing(r); err != nil {
			return err
		}
	}
	f.started = true
	for i := range f.cfg.Pairs {
		if err := f.Enable(i, true); err != nil {
			return err
		}
	}
	if f.protocol.Has(ProtoStatus) {
		return f.ack(SetStatus, AppendU64(nil, 0xf)) // ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK
	}
	return nil
}

func (f *Frontend) shareMemory() error {
	region := f.mem.region()
	if f.protocol.Has(ProtoMemSlots) {
		if f.mem.shared == f.conn {
			return nil // slots stay until removed
		}
		if _, err := f.getU64(GetMaxMemSlots); err != nil {
			return err
		}
		if err := f.ack(AddMemReg, AppendSingleRegion(nil, region), f.mem.fd); err != nil {
			return err
		}
	} else if err := f.ack(SetMemTable, AppendMemTable(nil, []MemRegion{region}), f.mem.fd); err != nil {
		return err
	}
	f.mem.shared = f.conn
	return nil
}

func (f *Frontend) startRing(r *Ring) error {
	i := uint32(r.index)
	if err := f.ack(SetVringNum, VringState{i, uint32(f.cfg.RingSize)}.Append(nil)); err != nil {
		return err
	}
	if err := f.ack(SetVringBase, VringState{i, uint32(r.base)}.Append(nil)); err != nil {
		return err
	}
	if err := f.ack(SetVringAddr, r.addr().Append(nil)); err != nil {
		return err
	}
	if err := f.ack(SetVringCall, AppendU64(nil, uint64(i)), r.call.FD()); err != nil {
		return err
	}
	if err := f.ack(SetVringKick, AppendU64(nil, uint64(i)), r.kick.FD()); err != nil {
		return err
	}
	return r.kick.Signal() // QEMU does so too: buffers may have been posted before
}

// Enable switches pair i on or off.
func (f *Frontend) Enable(i int, on bool) error {
	n := uint32(0)
	if on {
		n = 1
	}
	for _, r := range []*Ring{f.RX(i), f.TX(i)} {
		if err := f.ack(SetVringEnable, VringState{uint32(r.index), n}.Append(nil)); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops every ring and returns their next avail indexes, RX and TX of
// each pair in turn. Afterwards the back-end touches neither memory nor calls.
func (f *Frontend) Stop() (bases []uint16, err error) {
	f.started = false
	for _, r := range f.rings {
		m, err := f.call(GetVringBase, VringState{Index: uint32(r.index)}.Append(nil))
		if err != nil {
			return bases, err
		}
		var s VringState
		if err := s.Decode(m.Payload); err != nil {
			return bases, fmt.Errorf("front-end: %s: %w", GetVringBase, ErrReply)
		}
		if s.Index != uint32(r.index) || s.Num > 0xffff {
			return bases, fmt.Errorf("front-end: %s: ring %d, base %d: %w", GetVringBase, s.Index, s.Num, ErrReply)
		}
		r.base = uint16(s.Num)
		bases = append(bases, r.base)
	}
	return bases, nil
}

// Reset sends RESET_DEVICE if it was negotiated; the rings must be stopped.
func (f *Frontend) Reset() error {
	if !f.protocol.Has(ProtoResetDevice) {
		return fmt.Errorf("front-end: RESET_DEVICE: %w", ErrNotOffered)
	}
	return f.send(ResetDevice, nil)
}

// send writes a request that has no reply.
func (f *Frontend) send(r Request, payload []byte, fds ...int) error {
	if err := f.conn.Send(r, FlagVersion, payload, fds...); err != nil {
		return fmt.Errorf("front-end: %s: %w", r, err)
	}
	return nil
}

// ack writes a request and, with REPLY_ACK, waits for the answer that it was
// done. The error of a refusal is ErrRefused.
func (f *Frontend) ack(r Request, payload []byte, fds ...int) error {
	if !f.protocol.Has(ProtoReplyAck) {
		return f.send(r, payload, fds...)
	}
	if err := f.conn.Send(r, FlagVersion|FlagNeedReply, payload, fds...); err != nil {
		return fmt.Errorf("front-end: %s: %w", r, err)
	}
	m, err := f.reply(r)
	if err != nil {
		return err
	}
	v, err := U64(m.Payload)
	if err != nil {
		return fmt.Errorf("front-end: %s: %w", r, ErrReply)
	}
	if v != 0 {
		return fmt.Errorf("front-end: %s: %w", r, ErrRefused)
	}
	return nil
}

// call writes a request that has a reply of its own and returns that.
func (f *Frontend) call(r Request, payload []byte) (*Message, error) {
	if err := f.send(r, payload); err != nil {
		return nil, err
	}
	return f.reply(r)
}

func (f *Frontend) getU64(r Request) (uint64, error) {
	m, err := f.call(r, nil)
	if err != nil {
		return 0, err
	}
	v, err := U64(m.Payload)
	if err != nil {
		return 0, fmt.Errorf("front-end: %s: %w", r, ErrReply)
	}
	return v, nil
}

// reply reads the answer to r and is as particular about it as QEMU: the same
// request, flags of exactly 5, no descriptors.
func (f *Frontend) reply(r Request) (*Message, error) {
	m := new(Message)
	timer := time.AfterFunc(f.cfg.Timeout, func() { _ = f.conn.shutdown() })
	defer timer.Stop()
	if err := f.conn.Recv(m); err != nil {
		if errors.Is(err, ErrDisconnected) && !timer.Stop() {
			err = ErrTimeout
		}
		return nil, fmt.Errorf("front-end: %s: %w", r, err)
	}
	if m.Request != r || m.Flags != replyFlags || len(m.FDs) != 0 {
		m.CloseFDs()
		return nil, fmt.Errorf("front-end: %s answered by %s, flags %#x: %w", r, m.Request, m.Flags, ErrReply)
	}
	return m, nil
}
