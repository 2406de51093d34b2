package vhost_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/user/usertest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// raw connects without a Frontend's manners.
func raw(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func message(r user.Request, flags uint32, payload []byte) []byte {
	b := make([]byte, user.HeaderSize)
	h := user.Header{Request: r, Flags: flags, Size: uint32(len(payload))}
	h.Encode(b)
	return append(b, payload...)
}

func TestAPeerThatSendsRubbishIsThrownOutWithAReason(t *testing.T) {
	check := bystander(t)
	state := func(i, n uint32) []byte { return user.VringState{Index: i, Num: n}.Append(nil) }
	tests := []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"rubbish", []byte(strings.Repeat("GET / HTTP/1.1\r\n", 8)), user.ErrBadHeader},
		{"zeros", make([]byte, 4096), user.ErrBadHeader},
		{"version 0", message(user.GetFeatures, 0, nil), user.ErrBadHeader},
		{"version 2", message(user.GetFeatures, 2, nil), user.ErrBadHeader},
		{"reply", message(user.GetFeatures, 5, nil), user.ErrBadHeader},
		{"huge", func() []byte { b := message(user.SetMemTable, 1, nil); b[11] = 0x7f; return b }(), user.ErrTooLarge},
		{"unknown request", message(77, 1, nil), user.ErrUnknown},
		{"request 0", message(0, 1, nil), user.ErrUnknown},
		{"short payload", message(user.SetFeatures, 1, make([]byte, 4)), user.ErrBadPayload},
		{"long payload", message(user.GetFeatures, 1, make([]byte, 8)), user.ErrBadPayload},
		{"ring size 0", message(user.SetVringNum, 1, state(0, 0)), user.ErrRingSize},
		{"ring size 3", message(user.SetVringNum, 1, state(0, 3)), user.ErrRingSize},
		{"ring size 65536", message(user.SetVringNum, 1, state(0, 65536)), user.ErrRingSize},
		{"ring size 2^31", message(user.SetVringNum, 1, state(0, 1<<31)), user.ErrRingSize},
		{"ring 8 of 8", message(user.SetVringNum, 1, state(8, 256)), user.ErrRingIndex},
		{"ring 2^32-1", message(user.GetVringBase, 1, state(1<<32-1, 0)), user.ErrRingIndex},
		{"kick of ring 255", message(user.SetVringKick, 1, user.AppendU64(nil, 0x1ff)), user.ErrRingIndex},
		{"base 65536", message(user.SetVringBase, 1, state(0, 65536)), user.ErrBadPayload},
		{"enable 2", message(user.SetVringEnable, 1, state(0, 2)), user.ErrBadPayload},
		{"kick without fd", message(user.SetVringKick, 1, user.AppendU64(nil, 0)), user.ErrFDCount},
		{"memory without fds", message(user.SetMemTable, 1, user.AppendMemTable(nil, make([]user.MemRegion, 2))), user.ErrFDCount},
		{"9 regions", message(user.SetMemTable, 1, user.AppendMemTable(nil, make([]user.MemRegion, 9))), user.ErrTooManySlots},
		{"no regions", message(user.SetMemTable, 1, user.AppendMemTable(nil, nil)), user.ErrMemory},
		{"features not offered", message(user.SetFeatures, 1, user.AppendU64(nil, 1<<34)), user.ErrFeatures},
		{"features in conflict", message(user.SetFeatures, 1, user.AppendU64(nil, 1<<virtio.FGuestTSO4)), user.ErrFeatures},
		{"protocol features", message(user.SetProtocolFeatures, 1, user.AppendU64(nil, 1<<14)), user.ErrFeatures},
		{"log base", message(user.SetLogBase, 1, make([]byte, 16)), user.ErrUnsupported},
		{"remove nothing", message(user.RemMemReg, 1, user.AppendSingleRegion(nil, user.MemRegion{Size: 1})), user.ErrNoRegion},
	}
	p, socket, log := newPort(t, nil)
	for _, tt := range tests {
		c := raw(t, socket)
		if _, err := c.Write(tt.bytes); err != nil {
			t.Fatal(err)
		}
		select {
		case reason := <-log.stopped:
			if !errors.Is(reason, tt.want) || strings.Contains(reason.Error(), "\n") {
				t.Errorf("%s: %v", tt.name, reason)
			}
		case <-time.After(patience):
			t.Fatalf("%s: connection stays", tt.name)
		}
		if s := p.State(); s.Name != vhost.StateFailed {
			t.Errorf("%s: state %s", tt.name, s.Name)
		}
		_ = c.Close()
	}
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	check()
}

func TestWrongFileDescriptorsAreRefused(t *testing.T) {
	_, socket, log := newPort(t, nil)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	short, err := unix.MemfdCreate("short", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	event, err := user.NewEventFD()
	if err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	kick := message(user.SetVringKick, 1, user.AppendU64(nil, 0))
	call := message(user.SetVringCall, 1, user.AppendU64(nil, 0))
	region := user.MemRegion{GPA: 0, Size: 1 << 20, UVA: 1 << 30}
	memory := message(user.SetMemTable, 1, user.AppendMemTable(nil, []user.MemRegion{region}))
	add := message(user.AddMemReg, 1, user.AppendSingleRegion(nil, region))
	many := make([]int, 40)
	for i := range many {
		many[i] = short
	}
	tests := []struct {
		name string
		msg  []byte
		fds  []int
		want error
	}{
		{"file as kick", kick, []int{int(file.Fd())}, user.ErrBadFD},
		{"pipe as kick", kick, []int{pipe[0]}, user.ErrBadFD},
		{"epoll as kick", kick, []int{epoll}, user.ErrBadFD},
		{"file as call", call, []int{int(file.Fd())}, user.ErrBadFD},
		{"pipe as call", call, []int{pipe[1]}, user.ErrBadFD},
		{"epoll as call", call, []int{epoll}, user.ErrBadFD},
		{"memory as call", call, []int{short}, user.ErrBadFD},
		{"two kicks", kick, []int{event.FD(), event.FD()}, user.ErrFDCount},
		{"short memory", memory, []int{short}, user.ErrMemory},
		{"folder as memory", memory, []int{int(dir.Fd())}, user.ErrMemory},
		{"pipe as memory", add, []int{pipe[0]}, user.ErrMemory},
		{"eventfd as memory", add, []int{event.FD()}, user.ErrMemory},
		{"two files for one region", memory, []int{short, short}, user.ErrFDCount},
		{"forty descriptors", memory, many, user.ErrTruncatedFDs},
	}
	for _, tt := range tests {
		c := raw(t, socket)
		if _, _, err := c.WriteMsgUnix(tt.msg, unix.UnixRights(tt.fds...), nil); err != nil {
			t.Fatal(err)
		}
		if reason := <-log.stopped; !errors.Is(reason, tt.want) {
			t.Errorf("%s: %v", tt.name, reason)
		}
		_ = c.Close()
	}
	// Descriptors that no request asked for are closed and no offence.
	c := raw(t, socket)
	if _, _, err := c.WriteMsgUnix(message(user.GetFeatures, 1, nil), unix.UnixRights(short, event.FD()), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, user.HeaderSize+8)); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	<-log.stopped
	closedSince(t, before)
}

func TestThousandsOfRegionMessagesAreBounded(t *testing.T) {
	p, socket, log := newPort(t, nil)
	fd, err := unix.MemfdCreate("m", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 1<<20); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	c := raw(t, socket)
	done := make(chan error, 1)
	go func() { // need-reply without REPLY_ACK is not answered
		for i := range uint64(5000) {
			m := message(user.AddMemReg, 1, user.AppendSingleRegion(nil, user.MemRegion{GPA: i << 20, Size: 1 << 20, UVA: i << 20}))
			if _, _, err := c.WriteMsgUnix(m, unix.UnixRights(fd), nil); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	if reason := <-log.stopped; !errors.Is(reason, user.ErrTooManySlots) {
		t.Errorf("reason %v", reason)
	}
	if err := <-done; err == nil {
		t.Error("all 5000 taken")
	}
	_ = c.Close()
	closedSince(t, before)
	if s := p.State(); s.Regions != 0 {
		t.Errorf("%d regions left", s.Regions)
	}
}

func TestAPeerThatDoesNotReadIsThrownOut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the message timeout")
	}
	t.Parallel()
	_, socket, log := newPort(t, nil)
	c := raw(t, socket)
	go func() {
		m := bytes.Repeat(message(user.GetFeatures, 1, nil), 100)
		for {
			if _, err := c.Write(m); err != nil {
				return
			}
		}
	}()
	if reason := <-log.stopped; !errors.Is(reason, user.ErrTimeout) {
		t.Errorf("reason %v", reason)
	}
}

func TestAPeerThatStopsInAMessageIsThrownOut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the message timeout")
	}
	t.Parallel()
	_, socket, log := newPort(t, nil)
	c := raw(t, socket)
	if _, err := c.Write(message(user.SetFeatures, 1, make([]byte, 8))[:15]); err != nil {
		t.Fatal(err)
	}
	if reason := <-log.stopped; !errors.Is(reason, user.ErrTimeout) {
		t.Errorf("reason %v", reason)
	}
}

// The flag that makes a write return belongs to the file, not to our descriptor: a front-end can take it away at any
// time, fill the counter, and would hold whoever calls the guest next.
func TestACallCounterThatBlocksHoldsNobody(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.RX(0)
	r.AckCall()
	if err := unix.SetNonblock(r.CallFD(), false); err != nil {
		t.Fatal(err)
	}
	full := binary.NativeEndian.AppendUint64(nil, ^uint64(0)-1)
	if _, err := unix.Write(r.CallFD(), full); err != nil {
		t.Fatal(err)
	}
	g.post(r, true, 2000)
	g.kick(r)
	done := make(chan error, 1)
	go func() { done <- put(t, p.RX(0), plain(makeFrame(60, 1))) }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		r.AckCall() // lets it go
		t.Fatal("the data path waits for the peer")
	}
	if _, b, ok := g.recv(r); !ok || len(b) != 60 {
		t.Error("frame not delivered")
	}
	if c := p.RX(0).Counters(); c.Calls == 0 || c.CallsLost != 0 {
		t.Errorf("%d calls, %d lost", c.Calls, c.CallsLost)
	}
	exchange(t, p, g, 0) // it emptied nothing, and works on
}

// Front-ends that come, get so far and are gone, again and again, cost nothing once they are gone, and nothing at all for
// the port beside.
func TestConnectAndCrashLeaksNothing(t *testing.T) {
	const cycles = 1000
	p, socket, log := newPort(t, nil)
	batch := func(n int) { // what a subtest's cleanups hold goes with it
		t.Run("", func(t *testing.T) {
			for i := range n {
				g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Pairs, c.Memory = 2, 1<<20 })
				if i%3 > 0 {
					g.start()
				}
				if i%3 == 2 {
					exchange(t, p, g, 0)
				}
				_ = g.Close()
				<-log.stopped
			}
		})
		checkAlternating(t, log.take())
	}
	check := bystander(t)
	batch(20)
	maps := func() int {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Skip(err)
		}
		return bytes.Count(b, []byte("memfd:rscctl-guest"))
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the first may leave what finalizers hold
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	fds, m, h, routines := openFDs(t), maps(), heap(), runtime.NumGoroutine()
	for range cycles / 50 {
		batch(50)
	}
	closedSince(t, fds)
	waitFor(t, "all memory unmapped", func() bool { return maps() <= m })
	waitFor(t, "all goroutines ended", func() bool { return runtime.NumGoroutine() <= routines })
	// A session's buffers alone are 4 KiB; the load beside it has its garbage.
	waitFor(t, "all memory collected", func() bool { return heap()-h < cycles<<10 })
	check()
}

func TestADisconnectInMidTrafficStopsOnlyThatPort(t *testing.T) {
	check := bystander(t)
	p, socket, log := newPort(t, nil)
	stop := busyWorker(p)
	for range 30 {
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize = 256 }).start()
		for range 100 {
			g.post(g.RX(0), true, 4096)
			g.send(g.TX(0), virtio.NetHdr{}, makeFrame(100, 1))
		}
		g.kick(g.RX(0))
		g.kick(g.TX(0))
		time.Sleep(time.Millisecond)
		_ = g.Close()
		if reason := <-log.stopped; !errors.Is(reason, user.ErrDisconnected) {
			t.Errorf("reason %v", reason)
		}
	}
	stop()
	check()
}

// A front-end that comes and fails as fast as it can does not fill the log.
func TestAFrontEndThatFailsAgainAndAgainIsToldOfTenTimesAMinute(t *testing.T) {
	const tries = 200
	p, socket, log := newPort(t, nil)
	for range tries {
		c := raw(t, socket)
		if _, err := c.Write(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		if reason := <-log.stopped; !errors.Is(reason, user.ErrBadHeader) {
			t.Fatalf("reason %v", reason)
		}
		_ = c.Close()
	}
	if n := log.count("thrown out"); n != 10 {
		t.Errorf("%d lines", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// Each try has a line when it connects and one when it fails.
	if !log.has("380 log lines were left out") {
		t.Error("nobody is told how many were left out")
	}
}

// dearGuest is a guest that runs, whose call is watched many thousand times, and that has posted 250 buffers.
func dearGuest(t *testing.T, p *vhost.Port, socket string) *guest {
	t.Helper()
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize, c.Features = 256, without(all, virtio.FEventIdx) }).start()
	exchange(t, p, g, 0)
	usertest.Watch(t, g.RX(0).CallFD(), 40000)
	for range 250 {
		g.post(g.RX(0), true, 100)
	}
	g.kick(g.RX(0))
	return g
}

// A front-end whose call takes milliseconds of whoever makes it, because it is watched many thousand times, is served on: its
// calls cost the worker a credit, and later come from the port's own goroutine.
func TestAFrontEndThatIsDearToCallIsServedAtItsOwnPace(t *testing.T) {
	check := bystander(t)
	p, socket, log := newPort(t, nil)
	g := dearGuest(t, p, socket)
	for range 250 {
		if err := put(t, p.RX(0), plain(makeFrame(60, 1))); err != nil {
			t.Fatal(err)
		}
	}
	if c := p.Counters(); c.Spared == 0 || c.CallsLost > 0 {
		t.Errorf("counters %+v", c)
	}
	select {
	case reason := <-log.stopped:
		t.Errorf("thrown out: %v", reason)
	default:
	}
	for i := range 250 {
		if _, frame, _ := g.recv(g.RX(0)); len(frame) != 60 {
			t.Fatalf("frame %d: %d bytes", i, len(frame))
		}
	}
	exchange(t, p, g, 0)
	if s := p.State(); s.Name != vhost.StateRunning || s.Connections != 1 {
		t.Errorf("state %+v", s)
	}
	check()
}

// A front-end that gives its ring a new eventfd for each call, each as dear as the last, has one credit and no more; and the call
// that was on its way to the old one reaches the new one.
func TestANewEventFDIsNoNewCredit(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := dearGuest(t, p, socket)
	for i := range 250 {
		if err := put(t, p.RX(0), plain(makeFrame(60, 1))); err != nil {
			t.Fatal(err)
		}
		if i%3 == 2 { // before the fourth, which would be measured
			if err := g.SetCall(g.RX(0), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c := p.Counters(); c.Spared < 50 {
		t.Errorf("%d of 250 calls were spared: each new eventfd had a credit of its own", c.Spared)
	}
}
