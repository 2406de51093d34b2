package vhost_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// FuzzRings: whatever a guest has in its rings, its port delivers, finds too few buffers, or ends for a reason that
// names the guest's mistake; it never makes one of its own.
func FuzzRings(f *testing.F) {
	const num, mem = 8, 1 << 20
	const data = mem + 4096 // inside a Frontend's memory, behind the rings
	descs := func(ds ...vringtest.Desc) []byte {
		b := make([]byte, 16*len(ds))
		for i, d := range ds {
			d.Encode(b[16*i:])
		}
		return b
	}
	avail := func(idx uint16, heads ...uint16) []byte {
		b := binary.LittleEndian.AppendUint16([]byte{0, 0}, idx)
		for _, h := range heads {
			b = binary.LittleEndian.AppendUint16(b, h)
		}
		return b
	}
	const next, write, indirect = 1, 2, 4
	pages := descs(vringtest.Desc{Addr: data, Len: 4096, Flags: write}, vringtest.Desc{Addr: data + 4096, Len: 4096, Flags: write},
		vringtest.Desc{Addr: data + 8192, Len: 1 << 15, Flags: write})
	send := descs(vringtest.Desc{Addr: data, Len: 12, Flags: next, Next: 1}, vringtest.Desc{Addr: data + 100, Len: 1500})
	f.Add(pages, avail(3, 0, 1, 2), send, avail(1, 0), []byte{}, uint8(0xff))
	f.Add(pages, avail(2, 2, 1), send, avail(1, 0), []byte{0: 1, 1: 1, 2: 66, 4: 0xa8, 5: 5, 6: 34, 8: 16}, uint8(0))
	f.Add(pages, avail(2, 2, 1), send, avail(1, 0), []byte{0: 1, 1: 5, 2: 42, 4: 0xb0, 5: 4, 6: 34, 8: 6}, uint8(0))
	f.Add(descs(vringtest.Desc{Addr: data, Len: 1, Flags: write | next, Next: 1}, vringtest.Desc{Addr: data, Len: 70000, Flags: write}), avail(1, 0),
		descs(vringtest.Desc{Addr: data, Len: 32, Flags: indirect}), avail(1, 0), descs(vringtest.Desc{Addr: data, Len: 80}), uint8(7))
	f.Add(pages, avail(9), send, avail(0x8000), []byte{}, uint8(1))

	p, socket, log := newPort(f, nil)
	allowed := []error{user.ErrDisconnected, vring.ErrBadIndex, vring.ErrBadChain, vring.ErrOutOfRegion}
	f.Fuzz(func(t *testing.T, rxDesc, rxAvail, txDesc, txAvail, bytes []byte, bits uint8) {
		features := without(all, virtio.FMrgRxbuf, virtio.FIndirectDesc, virtio.FEventIdx)
		for i, bit := range []uint{virtio.FMrgRxbuf, virtio.FIndirectDesc, virtio.FEventIdx} {
			features |= virtio.Features(bits>>i&1) << bit
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cfg := user.FrontendConfig{Socket: socket, Features: features, RingSize: num, Memory: 256 << 10}
		g, err := user.OpenFrontend(ctx, cfg)
		for errors.Is(err, user.ErrDisconnected) { // the one before is still being taken down
			g, err = user.OpenFrontend(ctx, cfg)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, buf, err := g.Alloc(128<<10, 4096); err != nil {
			t.Fatal(err)
		} else {
			copy(buf, bytes)
		}
		if err := g.Start(); err != nil {
			t.Fatal(err)
		}
		for _, r := range []struct {
			ring         *user.Ring
			descs, avail []byte
		}{{g.RX(0), rxDesc, rxAvail}, {g.TX(0), txDesc, txAvail}} {
			copy(r.ring.Layout().Desc, r.descs)
			copy(r.ring.Layout().Avail, r.avail)
		}
		if q := p.RX(0); q.Begin() {
			for _, fr := range []*virtio.Frame{plain(makeFrame(60, 1)), gso(20000, 2), plain(makeFrame(1514, 3))} {
				switch err := q.Put(fr); err {
				case nil, vhost.ErrNoBuffers, vhost.ErrTooBig, vhost.ErrPortFailed:
				default:
					t.Errorf("put: %v", err)
				}
			}
			arm(q)
			q.Commit()
		}
		_, _, _ = p.TX(0).Poll(64, func(f *vhost.TxFrame) vhost.Next {
			if err := virtio.CheckTx(&f.Hdr, len(f.Data), features); err != nil {
				t.Errorf("a frame of the guest: %v", err)
			}
			return vhost.TakeOn
		}, nil)
		p.TX(0).ArmKick()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		reason := <-log.stopped
		log.take() // or it would grow for ever
		for _, target := range allowed {
			if errors.Is(reason, target) {
				return
			}
		}
		t.Errorf("ended with %v", reason)
	})
}
