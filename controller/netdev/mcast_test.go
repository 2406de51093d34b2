package netdev_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"golang.org/x/sys/unix"
)

const testType = 0x88b5 // local experimental EtherType (IEEE 802)

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group     = net.HardwareAddr{0x33, 0x33, 0xff, 1, 2, 3} // an IPv6 solicited-node group nobody here has joined
	guest     = net.HardwareAddr{0x02, 0x47, 0, 0, 0, 1}
)

func openMulticast(t *testing.T, s *netnstest.Side) *netdev.McastSocket {
	t.Helper()
	var m *netdev.McastSocket
	s.Do(t, func() (err error) { m, err = netdev.OpenMulticast(s.Index); return err })
	t.Cleanup(func() { m.Close() })
	return m
}

type received struct {
	frame  []byte
	tci    uint16
	tagged bool
}

// receive waits for the next frame.
func receive(t *testing.T, m *netdev.McastSocket, buf []byte) received {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(m.FD()), Events: unix.POLLIN}}
	for range 50 {
		frame, tci, tagged, err := m.Recv(buf)
		if err == nil {
			return received{frame, tci, tagged}
		}
		if !errors.Is(err, netdev.ErrEmpty) {
			t.Fatal(err)
		}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	t.Fatal("no frame within five seconds")
	return received{}
}

func empty(t *testing.T, m *netdev.McastSocket) {
	t.Helper()
	if frame, _, _, err := m.Recv(make([]byte, 2048)); !errors.Is(err, netdev.ErrEmpty) {
		t.Errorf("one frame more: %x, %v", frame, err)
	}
}

// quiet is a pair on whose wire nothing moves but what the test sends.
func quiet(t *testing.T, keepTxVLAN bool) *netnstest.Network {
	return netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true, KeepTxVLAN: keepTxVLAN})
}

func TestGroupFramesOnlyAndWhole(t *testing.T) {
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	empty(t, m)
	n.A.Inject(t, netnstest.Ethernet(n.B.MAC, n.A.MAC, testType, nil))   // unicast
	n.B.Inject(t, netnstest.Ethernet(broadcast, n.B.MAC, testType, nil)) // our own host's
	want := [][]byte{
		netnstest.Ethernet(broadcast, n.A.MAC, testType, bytes.Repeat([]byte{1}, 1500)),
		netnstest.Ethernet(group, n.A.MAC, testType, bytes.Repeat([]byte{2}, 100)),
		netnstest.Ethernet(net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}, n.A.MAC, testType, []byte{3}),
	}
	n.A.Inject(t, want...)
	buf := make([]byte, 2048)
	for i, w := range want {
		if r := receive(t, m, buf); !bytes.Equal(r.frame, w) || r.tagged {
			t.Errorf("frame %d: %+v", i, r)
		}
	}
	empty(t, m)
	if s := m.Stats(); s != (netdev.McastStats{Frames: 3}) {
		t.Errorf("%+v", s)
	}
}

func TestXDPLeavesGroupFramesToTheSocket(t *testing.T) {
	n := quiet(t, false)
	passXDP(t, n.B, 0)
	m := openMulticast(t, n.B)
	want := netnstest.Tag(netnstest.Ethernet(broadcast, n.A.MAC, testType, []byte("hello")), 42)
	n.A.Inject(t, want)
	if r := receive(t, m, make([]byte, 2048)); !r.tagged || r.tci != 42 || !bytes.Equal(r.frame[12:], want[16:]) {
		t.Errorf("%+v", r)
	}
}

func TestATagIsReportedWhereverItWas(t *testing.T) {
	for name, beside := range map[string]bool{"beside the frame": true, "in the frame": false} {
		t.Run(name, func(t *testing.T) {
			n := quiet(t, beside)
			m := openMulticast(t, n.B)
			stop := n.A.PushVLAN(t, 5<<13|100)
			plain := netnstest.Ethernet(broadcast, n.A.MAC, testType, make([]byte, 90))
			n.A.Inject(t, plain)
			buf := make([]byte, 2048)
			if r := receive(t, m, buf); !r.tagged || r.tci != 5<<13|100 || !bytes.Equal(r.frame, plain) {
				t.Errorf("one tag: %+v", r)
			}
			stop()
			// The outer tag is reported, the inner one stays.
			inner := netnstest.Tag(plain, 7)
			n.A.Inject(t, netnstest.Tag(inner, 8))
			if r := receive(t, m, buf); !r.tagged || r.tci != 8 || !bytes.Equal(r.frame, inner) {
				t.Errorf("two tags: %+v", r)
			}
		})
	}
}

func TestAServiceTagDoesNotPassForAVLAN(t *testing.T) {
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	frame := netnstest.Tag(netnstest.Ethernet(broadcast, n.A.MAC, testType, make([]byte, 90)), 100)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_8021AD)
	last := netnstest.Ethernet(broadcast, n.A.MAC, testType, []byte("last"))
	n.A.Inject(t, frame, last)
	if r := receive(t, m, make([]byte, 2048)); !bytes.Equal(r.frame, last) {
		t.Errorf("%+v", r)
	}
	if s := m.Stats(); s.ForeignTag != 1 || s.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

func TestAFrameLargerThanTheBufferIsLeftOutWhole(t *testing.T) {
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	exact := netnstest.Ethernet(broadcast, n.A.MAC, testType, bytes.Repeat([]byte{4}, 186))
	n.A.Inject(t, netnstest.Ethernet(broadcast, n.A.MAC, testType, make([]byte, 187)), exact)
	if r := receive(t, m, make([]byte, 200)); !bytes.Equal(r.frame, exact) {
		t.Errorf("%+v", r)
	}
	if s := m.Stats(); s.Oversize != 1 || s.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

// A veth peer that leaves checksums to its hardware sends only the pseudo-header's sum; a guest would drop that.
func TestPartialChecksumsOfDatagramsAreCompleted(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, NoIPv6: true, StaticNeighbors: true})
	capture := n.B.Capture(t)
	m := openMulticast(t, n.B)
	text := bytes.Repeat([]byte("who is there? "), 9)
	n.A.Do(t, func() error {
		var lc net.ListenConfig
		c, err := lc.ListenPacket(t.Context(), "udp4", "10.77.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(text, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 255), Port: 5353})
		return err
	})
	isText := func(b []byte) bool { return bytes.HasSuffix(b, text) }
	if f := capture.Until(5*time.Second, func(f netnstest.Frame) bool { return isText(f.Data) }); !f.Partial {
		t.Skip("this kernel's veth completes the checksum itself: nothing to show")
	}
	r := receive(t, m, make([]byte, 2048))
	for !isText(r.frame) {
		r = receive(t, m, make([]byte, 2048))
	}
	// Pseudo-header (addresses, protocol, length) and datagram must add up to all ones.
	udp := r.frame[34:]
	pseudo := append(bytes.Clone(r.frame[26:34]), 0, unix.IPPROTO_UDP, byte(len(udp)>>8), byte(len(udp)))
	var sum uint32
	for b := append(pseudo, udp...); len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		t.Errorf("the sums give %#x: %x", sum, r.frame)
	}
}

func TestLostFramesAreCounted(t *testing.T) {
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	in := n.A.Injector(t)
	frame := netnstest.Ethernet(broadcast, n.A.MAC, testType, make([]byte, 1500))
	const sent = 3000
	for range sent {
		if err := in.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	var frames, dropped uint64
	buf := make([]byte, 2048)
	for range 100 {
		for {
			if _, _, _, err := m.Recv(buf); err != nil {
				break
			}
		}
		s := m.Stats()
		if frames, dropped = s.Frames, s.Dropped; frames+dropped >= sent {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if dropped == 0 || frames+dropped != sent {
		t.Errorf("%d sent, %d received, %d lost", sent, frames, dropped)
	}
}

func TestReceivingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	in := n.A.Injector(t)
	frame := netnstest.Ethernet(broadcast, n.A.MAC, testType, make([]byte, 500))
	buf := make([]byte, 2048)
	if avg := testing.AllocsPerRun(200, func() { _, _, _, _ = m.Recv(buf) }); avg != 0 {
		t.Errorf("an empty socket: %v allocations", avg)
	}
	for range 300 {
		if err := in.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, m, buf)
	if avg := testing.AllocsPerRun(200, func() { _, _, _, _ = m.Recv(buf) }); avg != 0 {
		t.Errorf("a frame: %v allocations", avg)
	}
	if s := m.Stats(); s.Frames < 150 {
		t.Errorf("only %d frames were there", s.Frames)
	}
}

func TestTheGuestsMACIsInTheFilterWhileWanted(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("bridge"))
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	listed := func() bool {
		return strings.Contains(n.B.Output(t, "bridge", "fdb", "show", "dev", n.B.Dev), guest.String())
	}
	if listed() {
		t.Fatal("it is there before")
	}
	if err := m.AddUnicast(guest); err != nil || !listed() {
		t.Errorf("added: %v, listed %v", err, listed())
	}
	if err := m.DelUnicast(guest); err != nil || listed() {
		t.Errorf("removed: %v, listed %v", err, listed())
	}
	if err := m.AddUnicast(guest); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if listed() {
		t.Error("it outlives the socket")
	}
}

func TestPromiscuousModeEndsWithTheSocket(t *testing.T) {
	n := quiet(t, false)
	h := in(t, n.B)
	m := openMulticast(t, n.B)
	before := inspect(t, h, n.B.Dev).Promisc
	if err := m.SetPromiscuous(true); err != nil {
		t.Fatal(err)
	}
	if p := inspect(t, h, n.B.Dev).Promisc; p != before+1 {
		t.Errorf("%d users before, %d after", before, p)
	}
	m.Close()
	if p := inspect(t, h, n.B.Dev).Promisc; p != before {
		t.Errorf("%d users before, %d after closing", before, p)
	}
}

func TestASocketOutlivesItsInterface(t *testing.T) {
	n := quiet(t, false)
	m := openMulticast(t, n.B)
	n.B.Output(t, "ip", "link", "set", n.B.Dev, "down")
	empty(t, m)
	n.B.Output(t, "ip", "link", "set", n.B.Dev, "up")
	frame := netnstest.Ethernet(broadcast, n.A.MAC, testType, []byte("again"))
	waitRunning(t, n.A)
	n.A.Inject(t, frame)
	if r := receive(t, m, make([]byte, 2048)); !bytes.Equal(r.frame, frame) {
		t.Errorf("up again: %+v", r)
	}
	n.B.Output(t, "ip", "link", "delete", n.B.Dev)
	empty(t, m)
	if err := m.AddUnicast(guest); !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("a filter entry on nothing: %v", err)
	}
}

func TestThereIsNoSocketOnNoInterface(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	err := ns.Do(func() error { _, err := netdev.OpenMulticast(4711); return err })
	if !errors.Is(err, netdev.ErrNoDevice) {
		t.Error(err)
	}
}
