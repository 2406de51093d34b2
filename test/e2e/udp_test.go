package e2e

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const (
	datagramLen = 1200 // as QUIC's
	trainLen    = 40   // datagrams
	quicPort    = 4433
	ahead       = 4 // trains that may be on their way
)

// datagramStream is a QUIC-like stream: trains of datagrams that the sender hands to its kernel as one (UDP_SEGMENT), each with its
// number and bytes that follow from it.
type datagramStream struct {
	credit  int // eventfd: the trains that have arrived, for the sender to follow
	sendCPU time.Duration
	ended   atomic.Bool // nobody receives any more

	anyOrder bool // datagrams that come behind later ones are counted, not refused
	late     int
}

func newDatagramStream(t *testing.T) *datagramStream {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &datagramStream{credit: fd}
}

func threadCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func processCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// address is a side's, of one family.
func address(s *netnstest.Side, v6 bool) netip.Addr {
	if v6 {
		return s.IPv6.Addr()
	}
	return s.IPv4.Addr()
}

// udpSocket opens a datagram socket in a side's namespace, and says where it is.
func udpSocket(t *testing.T, s *netnstest.Side, addr netip.Addr, set func(fd int) error) (fd int, sa unix.Sockaddr) {
	t.Helper()
	family := unix.AF_INET6
	sa = &unix.SockaddrInet6{Port: quicPort, Addr: addr.As16()}
	if addr.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: quicPort, Addr: addr.As4()}
	}
	err := s.NS.Do(func() (err error) {
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return set(fd)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, sa
}

// datagramsInto opens a socket that receives a stream, with UDP_GRO or without, and says where it is.
func datagramsInto(t *testing.T, s *netnstest.Side, v6 bool, gro int) (fd int, to unix.Sockaddr) {
	t.Helper()
	wait := unix.NsecToTimeval(netnstest.Patience(time.Second).Nanoseconds())
	fd, to = udpSocket(t, s, address(s, v6), func(fd int) error {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, gro)
	})
	if err := unix.Bind(fd, to); err != nil {
		t.Fatal(err)
	}
	return fd, to
}

// trainsOf opens a socket that sends a stream in trains.
func trainsOf(t *testing.T, s *netnstest.Side, v6 bool) (fd int) {
	t.Helper()
	fd, _ = udpSocket(t, s, address(s, v6), func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, datagramLen)
	})
	return fd
}

// patterns are what follows the number in datagrams, by its last byte: made once, as making them would cost more than receiving them.
var patterns = sync.OnceValue(func() *[256][datagramLen]byte {
	var all [256][datagramLen]byte
	for n := range all {
		for i := range all[n] {
			all[n][i] = byte(n) + byte(i)
		}
	}
	return &all
})

func fillDatagram(b []byte, number uint64) {
	p := patterns()
	copy(b, p[byte(number)][:])
	binary.BigEndian.PutUint64(b, number)
}

// send sends n datagrams, each train's last one shorter, and never more than ahead trains above what has arrived.
func (d *datagramStream) send(t *testing.T, fd int, to unix.Sockaddr, n uint64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := threadCPU()
	defer func() { d.sendCPU = threadCPU() - begin }()
	b, whole := make([]byte, trainLen*datagramLen), true
	for next := uint64(0); next < n && !d.ended.Load(); next += trainLen {
		for i := range uint64(trainLen) {
			fillDatagram(b[i*datagramLen:(i+1)*datagramLen], next+i)
		}
		err := sendTrain(fd, b[:len(b)-100], to, whole)
		if errors.Is(err, unix.EIO) && whole { // an older kernel cuts no train for a device that sums nothing (net/ipv4/udp.c, udp_send_skb)
			whole = false
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0)
			err = sendTrain(fd, b[:len(b)-100], to, whole)
		}
		if err != nil {
			t.Errorf("send: %v", err)
			return
		}
		if next >= ahead*trainLen {
			d.wait()
		}
	}
}

// wait waits until one more train has arrived, and not for ever for one that was lost. It sleeps in the kernel: a sleep of the runtime's would
// be on the guest's bill.
func (d *datagramStream) wait() {
	most := int(netnstest.Patience(500 * time.Millisecond).Milliseconds())
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(d.credit), Events: unix.POLLIN}}, most); n > 0 {
		var one [8]byte
		_, _ = unix.Read(d.credit, one[:])
	}
}

// sendTrain sends datagrams by one call, or each by its own.
func sendTrain(fd int, b []byte, to unix.Sockaddr, whole bool) error {
	if whole {
		return unix.Sendto(fd, b, 0, to)
	}
	for one := range slices.Chunk(b, datagramLen) {
		if err := unix.Sendto(fd, one, 0, to); err != nil {
			return err
		}
	}
	return nil
}

// receive checks every datagram, and their order, until all came, or nothing for a second. It returns how many came, by how many calls. In an
// emulated machine order is not asked for: the guest's loop moves between processors there, and a worker that gets no time of one hangs.
func (d *datagramStream) receive(t *testing.T, fd, gro int, n uint64) (datagrams, calls uint64) {
	defer d.ended.Store(true)
	credit := binary.NativeEndian.AppendUint64(nil, 1)
	buf, oob, want, seen := make([]byte, 1<<16), make([]byte, 64), make([]byte, datagramLen), make([]bool, n)
	for last := int64(-1); datagrams < n; {
		var m, o int
		var err error
		if gro == 0 {
			m, err = unix.Read(fd, buf)
		} else {
			m, o, _, _, err = unix.Recvmsg(fd, buf, oob, 0)
		}
		if errors.Is(err, unix.EINTR) { // a signal of Go's runtime; with SO_RCVTIMEO no call goes on by itself (signal(7))
			continue
		}
		if err != nil {
			return datagrams, calls
		}
		calls++
		size := m
		if msgs, err := unix.ParseSocketControlMessage(oob[:o]); err == nil {
			for _, c := range msgs {
				if c.Header.Level == unix.IPPROTO_UDP && c.Header.Type == unix.UDP_GRO {
					size = int(binary.NativeEndian.Uint32(c.Data))
				}
			}
		}
		for at := 0; at < m; at += size {
			b := buf[at:min(m, at+size)]
			number := int64(binary.BigEndian.Uint64(b))
			fillDatagram(want, uint64(number))
			late := number <= last && !netnstest.Emulated()
			if late && d.anyOrder {
				d.late, late = d.late+1, false
			}
			if late || uint64(number) >= n || seen[number] || (len(b) != datagramLen && len(b) != datagramLen-100) || string(b) != string(want[:len(b)]) {
				t.Errorf("datagram %d of %d bytes behind %d: not what was sent", number, len(b), last)
				return datagrams, calls
			}
			for trains := (number+1)/trainLen - (last+1)/trainLen; trains > 0; trains-- {
				_, _ = unix.Write(d.credit, credit)
			}
			seen[number], last = true, max(last, number)
			datagrams++
		}
	}
	return datagrams, calls
}

// Trains of datagrams arrive whole, in order and merged at a guest that takes UDP superframes, be its socket one for trains or not.
func TestDatagramTrainsReachTheGuestMerged(t *testing.T) {
	datagrams, rounds := uint64(16000), 5
	if netnstest.Emulated() {
		datagrams, rounds = 4000, 1
	}
	r := newRig(t, netnstest.Options{NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	if !g.Features().Has(virtio.FGuestUSO4) {
		t.Skip("allowed: this kernel's tap takes no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	}
	netnstest.Bulk(t, g.side, r.net.A, 1<<10, false, time.Minute) // neighbours know each other
	for _, gro := range []int{0, 1} {
		perSecond := map[string][]float64{} // of guest CPU
		for range rounds {
			for _, udp := range []string{"off", "on"} {
				r.must("policy", "set", "vm0", "--udp", udp)
				perSecond[udp] = append(perSecond[udp], r.receiveTrains(g.side, gro, udp == "on", datagrams))
			}
		}
		ratio := make([]float64, len(perSecond["on"]))
		for i := range ratio {
			ratio[i] = perSecond["on"][i] / perSecond["off"][i]
		}
		slices.Sort(ratio)
		t.Logf("UDP_GRO %d: %.2f (%.2f to %.2f) times the datagrams for a second of guest CPU", gro, ratio[len(ratio)/2], ratio[0], ratio[len(ratio)-1])
	}
}

// receiveTrains lets a guest receive a stream, merged or not, and returns how many datagrams a second of its CPU brought.
func (r *rig) receiveTrains(s *netnstest.Side, gro int, merged bool, n uint64) (perSecond float64) {
	t := r.t
	t.Helper()
	in, to := datagramsInto(t, s, false, gro)
	defer unix.Close(in)
	out := trainsOf(t, r.net.A, false)
	var before, after api.Stats
	r.json(&before, "stats")
	begin := processCPU()
	d := newDatagramStream(t)
	done := make(chan struct{})
	go func() { defer close(done); d.send(t, out, to, n) }()
	got, calls := d.receive(t, in, gro, n)
	<-done
	cpu := processCPU() - begin - d.sendCPU
	r.json(&after, "stats")
	super := after.VMs[0].Superframes - before.VMs[0].Superframes
	t.Logf("UDP_GRO %d, merged %v: %d of %d datagrams by %d calls, %d superframes, %v of guest CPU", gro, merged, got, n, calls, super, cpu)
	switch {
	case got == 0:
		t.Fatal("nothing came")
	case !merged && super != 0:
		t.Errorf("%d superframes with --udp off", super)
	case merged && super == 0:
		t.Error("no superframes with --udp on")
	case merged && gro == 1 && calls > n/4:
		t.Errorf("%d calls for %d datagrams: no trains reach the socket", calls, n)
	}
	if after.Unexplained != 0 {
		t.Errorf("%d packets are unexplained", after.Unexplained)
	}
	return float64(got) / cpu.Seconds()
}
