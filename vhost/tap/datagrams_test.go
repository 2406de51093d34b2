package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// datagrams is a superframe of UDP over IPv4: n datagrams of size bytes each.
func datagrams(n, size int) *virtio.Frame {
	payload := bytes.Clone(pattern()[:n*size])
	l4 := 8 + len(payload)
	ip := []byte{0x45, 0, byte((20 + l4) >> 8), byte(20 + l4), 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2}
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
	udp := []byte{0x05, 0xdc, 0x1f, 0x40, byte(l4 >> 8), byte(l4), 0, 0}
	binary.BigEndian.PutUint16(udp[6:], sum(ip[12:], uint32(17+l4)))
	head := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, append(ip, udp...)...)
	return &virtio.Frame{
		Hdr: virtio.NetHdr{
			Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOUDPL4, HdrLen: uint16(len(head)), GSOSize: uint16(size), CsumStart: 34, CsumOffset: 6,
		},
		Frags: [][]byte{head, payload}, Len: len(head) + len(payload),
	}
}

// A tap whose reader takes superframes of UDP gets them whole; one whose reader does not gets the datagrams, which the kernel cuts, each a
// frame that a guest without them may be given.
func TestSuperframesOfUDPReachATapThatTakesThem(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	if err := r.tap.SetOffload(tapvm.AllOffloads | tapvm.USO); errors.Is(err, unix.EINVAL) {
		t.Skip("allowed: this kernel's tap takes no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	} else if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*virtio.Frame{datagrams(40, 1200), datagrams(2, 1), datagrams(64, 1000)} {
		r.send(f)
		r.expect(f)
		r.empty()
	}
	if err := r.tap.SetOffload(tapvm.AllOffloads); err != nil {
		t.Fatal(err)
	}
	f := datagrams(40, 1200)
	r.send(f)
	for i := range 40 {
		h, b, ok := r.read()
		if !ok {
			t.Fatalf("%d datagrams of 40", i)
		}
		h.NumBuffers = 1
		if err := virtio.CheckRx(&h, b, tapvm.AllOffloads.Features()); err != nil {
			t.Errorf("datagram %d: %v: %+v", i, err, h)
		}
		if h.GSOType != virtio.GSONone || len(b) != 42+1200 || !bytes.Equal(b[42:], f.Frags[1][i*1200:(i+1)*1200]) {
			t.Fatalf("datagram %d: %+v, %d bytes", i, h, len(b))
		}
	}
	r.empty()
}

// A superframe of UDP whose header lies goes no further than the check.
func TestALyingSuperframeOfUDPIsRefused(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	for name, edit := range map[string]func(*virtio.NetHdr){
		"no size":             func(h *virtio.NetHdr) { h.GSOSize = 0 },
		"no partial sum":      func(h *virtio.NetHdr) { h.Flags = 0 },
		"TCP's place":         func(h *virtio.NetHdr) { h.CsumOffset = 16 },
		"CWR":                 func(h *virtio.NetHdr) { h.GSOType |= virtio.GSOECN },
		"headers cut short":   func(h *virtio.NetHdr) { h.HdrLen = 41 },
		"beyond the frame":    func(h *virtio.NetHdr) { h.CsumStart = 60000 },
		"a fragmented packet": func(h *virtio.NetHdr) { h.GSOType = virtio.GSOUDP },
	} {
		f := datagrams(4, 1000)
		edit(&f.Hdr)
		if n, err := r.feed.Send([]*virtio.Frame{f}); n != 0 || !errors.Is(err, tap.ErrRefused) {
			t.Errorf("%s: sent %d, %v", name, n, err)
		}
	}
	r.empty()
}
