package stackguest_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// host is a guest in a namespace of its own, with the port it is connected to.
type host struct {
	netnstest.Side
	port  *vhost.Port
	guest *stackguest.Guest
}

func newHost(t *testing.T, n byte, cfg stackguest.Config) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "stackguest-") // a socket's path must be short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{}
	h.NS, h.Dev, h.MAC = netnstest.Namespace(t), "nic0", net.HardwareAddr{2, 0, 0, 0, 0, n}
	h.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, n}), 24)
	h.IPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: n}), 64)
	cfg.Socket, cfg.Tap, cfg.MAC = filepath.Join(dir, "s"), h.Dev, h.MAC
	h.port, err = vhost.NewPort(vhost.Config{Name: h.Dev, Socket: cfg.Socket, UID: -1, GID: -1, Logf: t.Logf})
	must(t, err)
	t.Cleanup(func() { h.port.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, h.NS.Do(func() (err error) {
		if h.guest, err = stackguest.Open(ctx, cfg); err != nil {
			return err
		}
		l, err := netlink.LinkByName(h.Dev)
		if err != nil {
			return err
		}
		for _, p := range []netip.Prefix{h.IPv4, h.IPv6} {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
	must(t, h.guest.Start())
	return h
}

// wire is the back-end: what one guest sends the other receives, superframes as they are.
func wire(t *testing.T, a, b *host) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, x := range [][2]*host{{a, b}, {b, a}} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				moved := 0
				for i := range x[0].port.MaxPairs() {
					moved += carry(t, x[0].port.TX(i), x[1].port.RX(i))
				}
				if moved == 0 {
					time.Sleep(50 * time.Microsecond)
				}
			}
		})
	}
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
}

func carry(t *testing.T, from *vhost.TxQueue, to *vhost.RxQueue) int {
	if !to.Begin() {
		return 0
	}
	defer to.Commit()
	var frags [1][]byte
	n, _, _ := from.Poll(64, func(f *vhost.TxFrame) vhost.Next {
		hdr := f.Hdr
		if hdr.GSOType != virtio.GSONone { // on transmit hdr_len is a hint, on receive it is a promise
			hdr.HdrLen = hdr.CsumStart + uint16(f.Data[hdr.CsumStart+12]>>4)*4
		} else {
			hdr.HdrLen = 0
		}
		frags[0] = f.Data
		switch err := to.Put(&virtio.Frame{Hdr: hdr, Frags: frags[:], Len: len(f.Data)}); err {
		case nil:
		case vhost.ErrNoBuffers:
			return vhost.Leave
		default:
			t.Errorf("put: %v (header %+v, ethertype %#x)", err, hdr, binary.BigEndian.Uint16(f.Data[12:]))
		}
		return vhost.TakeOn
	}, nil)
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Two Linux stacks talk through two guests. Both directions carry TSO frames where negotiated, so the sender's own
// superframes come out at the receiver and the kernel and the validator judge them.
func TestTwoStacksTalk(t *testing.T) {
	netnstest.Need(t, netnstest.TAP)
	without := func(bits ...uint) virtio.Features { return stackguest.DefaultFeatures &^ virtio.Mask(bits...) }
	tests := []struct {
		name  string
		cfg   stackguest.Config
		super bool // superframes are possible
	}{
		{"mergeable buffers of 4096", stackguest.Config{}, true},
		{"mergeable buffers of 1536", stackguest.Config{BufferLen: 1536}, true},
		{"mergeable buffers of 300", stackguest.Config{BufferLen: 300}, true},
		{"small rings", stackguest.Config{RingSize: 64}, true},
		{"one buffer for each frame", stackguest.Config{
			Features: without(virtio.FMrgRxbuf), BufferLen: 66 << 10, RingSize: 64,
		}, true},
		{"legacy header", stackguest.Config{
			Features: without(virtio.FMrgRxbuf, virtio.FVersion1), BufferLen: 66 << 10, RingSize: 64,
		}, true},
		{"no EVENT_IDX", stackguest.Config{Features: without(virtio.FEventIdx)}, true},
		{"no offloads", stackguest.Config{Features: virtio.Mask(virtio.FVersion1, virtio.FMrgRxbuf)}, false},
		{"two pairs", stackguest.Config{Pairs: 2}, true},
		{"NAPI", stackguest.Config{NAPI: true}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newHost(t, 1, tt.cfg), newHost(t, 2, tt.cfg)
			wire(t, a, b)
			for _, v6 := range []bool{false, true} {
				netnstest.Bulk(t, &a.Side, &b.Side, 8<<20, v6, 30*time.Second)
				netnstest.Bulk(t, &b.Side, &a.Side, 8<<20, v6, 30*time.Second)
			}
			for _, h := range []*host{a, b} {
				s := h.guest.Stats()
				if s.Violations != 0 || s.TapRefused != 0 {
					t.Errorf("%s: %+v", h.IPv4, s)
				}
				if super := s.Largest > 1514; super != tt.super {
					t.Errorf("%s: largest frame %d bytes", h.IPv4, s.Largest)
				}
				if tt.super && s.Segments <= s.DataFrames {
					t.Errorf("%s: %d segments in %d frames", h.IPv4, s.Segments, s.DataFrames)
				}
				must(t, h.guest.Close())
			}
		})
	}
}

func TestGuestNoticesThatTheBackEndIsGone(t *testing.T) {
	netnstest.Need(t, netnstest.TAP)
	h := newHost(t, 1, stackguest.Config{})
	must(t, h.port.Close())
	select {
	case <-h.guest.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it did not")
	}
	if h.guest.Err() == nil {
		t.Error("no reason")
	}
	if err := h.guest.Close(); err == nil {
		t.Error("Close hides the reason")
	}
}
