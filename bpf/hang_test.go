package bpf

import (
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/test/netnstest"
)

// A worker that hangs. The test is the worker, and where a test must not depend on how fast it runs, the clock.

// Places of the VMs of a hangRing: one that the kernel reaches too, and one that it does not.
const (
	onTap  = 1
	onUser = 2
)

// newHangRing is a ring with two VMs, whose worker has a fill ring of so many.
func newHangRing(t *testing.T, fill int) *ring {
	t.Helper()
	r := newRing(t, maxRoom, onUser)
	r.mustSetPort(t, onTap, PortValue{Port: meta.PortID(onTap, 7), Flags: FlagSteer | FlagTCPOnly | FlagFailOpen})
	r.begin(t, fill)
	return r
}

// begin gives the ring another worker.
func (r *ring) begin(t *testing.T, fill int) {
	t.Helper()
	if err := r.shares.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := r.Shares(0, maxRoom, fill)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.shares = s
}

// since says when the first of the frames that wait came; the account must have one.
func (r *ring) since(t *testing.T, ago time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	r.shares.queue.SinceTick-- // no test is within one
	r.shares.queue.SinceNS = uint64(now.Nano() - ago.Nanoseconds())
}

// sends is what becomes of a VM's next frame.
func (r *ring) sends(t *testing.T, vm int) uint32 {
	t.Helper()
	act, _ := r.run(t, tagged(0x8100, vm, ip4(6, 0x4000, nil, tcp(5, 0x10, 100))))
	return act
}

// waits sends so many frames that go to the socket, in no time.
func (r *ring) waits(t *testing.T, vm, frames int) {
	t.Helper()
	for range frames {
		if act := r.sends(t, vm); act != redirected {
			t.Fatalf("action %d", act)
		}
		r.since(t, -time.Hour)
	}
}

func (r *ring) expect(t *testing.T, vm int, act uint32, when string) {
	t.Helper()
	if got := r.sends(t, vm); got != act {
		t.Errorf("%s: action %d, want %d", when, got, act)
	}
}

// The frames that wait are half of the fill ring: from then on a tap's frames go by the kernel, at once, until the worker is back.
func TestATapsFramesPassWhenHalfTheFillRingWaits(t *testing.T) {
	r := newHangRing(t, 64)
	for round := range uint64(3) {
		r.waits(t, onTap, 20)
		r.waits(t, onUser, 12)
		got := moved(t, r.Program, func() {
			for range 5 {
				r.expect(t, onTap, passed, "half the fill ring waits")
			}
			r.expect(t, onUser, redirected, "a VM that the kernel does not reach")
		})
		if got["pass_hang"] != 5 || got["redirect"] != 1 || len(got) != 2 {
			t.Errorf("counted %v", got)
		}
		if h := r.shares.Hangs(); h != (Hangs{Times: round + 1, Passed: 5 * (round + 1), Now: true}) {
			t.Errorf("while it hangs: %+v", h)
		}
		if n, again := r.shares.Overtaken(), r.shares.Overtaken(); n != 32 || again != 0 {
			t.Errorf("%d frames were overtaken, and once more %d; want 32 and 0", n, again)
		}
		r.shares.Publish()
		if h := r.shares.Hangs(); h.Now {
			t.Errorf("a worker that is back: %+v", h)
		}
		r.expect(t, onTap, redirected, "the worker is back")
		r.shares.Publish()
	}
}

// The first frame has waited for 5 ms. Before, and with the clock of another CPU, nobody is taken for hung.
func TestATapsFramesPassWhenOneHasWaited(t *testing.T) {
	r := newHangRing(t, 1<<16)
	r.expect(t, onTap, redirected, "nothing waits")
	r.since(t, -time.Hour)
	r.waits(t, onTap, 2)
	r.since(t, 5*time.Millisecond)
	r.expect(t, onTap, passed, "5 ms")
	r.expect(t, onTap, passed, "and more")
	r.expect(t, onUser, redirected, "a VM that the kernel does not reach")
	if h := r.shares.Hangs(); h.Times != 1 || h.Passed != 2 {
		t.Errorf("%+v", h)
	}
	if n := r.shares.Overtaken(); n != 3 {
		t.Errorf("%d frames were overtaken, want 3", n)
	}
	r.shares.Publish()
	r.expect(t, onTap, redirected, "the worker is back")
}

// What waits may be another VM's, of any protocol: its mark has the right time.
func TestTheClockIsReadForTheFirstFrameThatWaits(t *testing.T) {
	r := newHangRing(t, 1<<16)
	udp := tagged(0x8100, onUser, ip4(17, 0, nil, make([]byte, 30)))
	if act, _ := r.run(t, udp); act != redirected {
		t.Fatalf("action %d", act)
	}
	time.Sleep(10 * time.Millisecond)
	r.expect(t, onTap, passed, "another VM's frame waits for 10 ms")
}

// A worker sleeps while nothing comes. The first frame after a pause finds nobody hanging, however long the pause was.
func TestAPauseIsNoHang(t *testing.T) {
	r := newHangRing(t, 1<<16)
	r.expect(t, onTap, redirected, "the first")
	r.shares.Publish()
	r.since(t, time.Hour)
	time.Sleep(10 * time.Millisecond)
	r.expect(t, onTap, redirected, "after a pause")
	r.since(t, -time.Hour)
	r.waits(t, onTap, 1)
	if h := r.shares.Hangs(); h.Times != 0 {
		t.Errorf("%+v", h)
	}
}

// An empty burst is a beat too: a worker that looked and found nothing does not hang, it waits for a frame that was lost.
func TestAWorkerThatFindsNothingDoesNotHang(t *testing.T) {
	r := newHangRing(t, 1<<16)
	r.expect(t, onTap, redirected, "the one that is lost")
	r.since(t, time.Hour)
	r.expect(t, onTap, passed, "the next one")
	r.shares.Publish() // nothing was taken
	r.expect(t, onTap, redirected, "the one behind")
}

// What nobody else can take goes on to the socket, but leaves a sixteenth of the fill ring.
func TestAHungWorkersFillRingDoesNotRunDry(t *testing.T) {
	const fill = 128
	r := newHangRing(t, fill)
	r.waits(t, onUser, fill/16*15)
	got := moved(t, r.Program, func() {
		r.expect(t, onUser, dropped, "a sixteenth is left")
		r.expect(t, onTap, passed, "a sixteenth is left")
	})
	if got["drop_hang"] != 1 || got["pass_hang"] != 1 || len(got) != 2 {
		t.Errorf("counted %v", got)
	}
	if h := r.shares.Hangs(); h.Times != 1 || h.Passed != 1 {
		t.Errorf("%+v", h)
	}
	r.shares.Publish()
	r.expect(t, onUser, redirected, "the worker is back")
}

// When the socket has gone, nobody hangs: the frames pass as if there had never been a worker.
func TestADeadSocketIsNoHang(t *testing.T) {
	r := newHangRing(t, 64)
	r.waits(t, onUser, 60)
	if err := r.ClearSocket(0); err != nil {
		t.Fatal(err)
	}
	got := moved(t, r.Program, func() {
		r.expect(t, onTap, passed, "without a socket")
		r.expect(t, onUser, passed, "without a socket")
	})
	if got["pass_no_socket"] != 2 || len(got) != 1 {
		t.Errorf("counted %v", got)
	}
	if h := r.shares.Hangs(); h.Times != 0 || h.Passed != 0 {
		t.Errorf("%+v", h)
	}
}

// A worker that begins on a queue is not taken for the one before it, and tells of none of its hangs.
func TestTheNextWorkerDoesNotHang(t *testing.T) {
	r := newHangRing(t, 64)
	r.waits(t, onTap, 32)
	r.expect(t, onTap, passed, "the one before hangs")
	r.begin(t, 64)
	if n := r.shares.Overtaken(); n != 0 {
		t.Errorf("%d frames of the worker before were overtaken", n)
	}
	if h := r.shares.Hangs(); h != (Hangs{Times: 1, Passed: 1}) {
		t.Errorf("%+v", h)
	}
	r.expect(t, onTap, redirected, "the next one is there")
}

// A queue is taken for hung by itself.
func TestTheOtherQueueDoesNotHang(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	p, err := Load(LoadOptions{Ifindex: n.B.Index, Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.mustSetPort(t, 0, PortValue{Port: 3, Flags: FlagSteer | FlagFailOpen})
	var shares [2]*Shares
	for q := range shares {
		if shares[q], err = p.Shares(q, 2048, 64); err != nil {
			t.Fatal(err)
		}
		defer shares[q].Close()
		if err := p.SetSocket(q, unboundSocket(t)); err != nil {
			t.Fatal(err)
		}
	}
	frame := ip4(6, 0x4000, nil, tcp(5, 0x10, 100))
	on := func(queue int) (act uint32) {
		t.Helper()
		n.B.Do(t, func() (err error) {
			act, err = p.prog.Run(&ebpf.RunOptions{Data: frame, Context: xdpMD{DataEnd: uint32(len(frame)), Ifindex: uint32(n.B.Index), Queue: uint32(queue)}})
			return err
		})
		return act
	}
	for range 32 {
		if act := on(1); act != redirected {
			t.Fatalf("action %d", act)
		}
		shares[1].queue.SinceNS = 1 << 62
	}
	if a, b := on(0), on(1); a != redirected || b != passed {
		t.Errorf("actions %d and %d", a, b)
	}
	if a, b := shares[0].Hangs(), shares[1].Hangs(); a.Times != 0 || b.Times != 1 {
		t.Errorf("%+v and %+v", a, b)
	}
}

// xdpMD is struct xdp_md (include/uapi/linux/bpf.h), by which BPF_PROG_TEST_RUN is told the queue.
type xdpMD struct {
	Data, DataEnd, DataMeta, Ifindex, Queue, Egress uint32
}

// What XDP writes per frame, what the worker writes, and what is written for a hang lie on cache lines of their own.
func TestTheWritersDoNotShareCacheLines(t *testing.T) {
	for name, want := range map[string]uintptr{"Admitted": 0, "Taken": 64, "Hangs": 128, "VMs": 192} {
		if f, ok := reflect.TypeFor[rxQueue]().FieldByName(name); !ok || f.Offset != want {
			t.Errorf("%s at %d, want %d", name, f.Offset, want)
		}
	}
}
