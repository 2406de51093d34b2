package bpf

import (
	"github.com/rscctl/rscctl/bpf/meta"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

// The shares of an RX ring. BPF_PROG_TEST_RUN delivers nothing, so the test is the ring and the worker.

const (
	passed     = 2
	redirected = 4
	dropped    = 1
)

// ring is a program with shares on queue 0, and VMs in VLANs 1 and up.
type ring struct {
	*Program
	shares *Shares
}

func newRing(t *testing.T, room, vms int) *ring {
	t.Helper()
	r := &ring{Program: loadForTest(t)}
	for vm := 1; vm <= vms; vm++ {
		r.mustSetPort(t, uint16(vm), PortValue{Port: meta.PortID(uint32(vm), 7), Flags: FlagSteer})
	}
	r.share(t, room)
	socketFor(t, r.Program)
	return r
}

func (r *ring) share(t *testing.T, room int) {
	t.Helper()
	s, err := r.Shares(0, room, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.shares = s
}

// arrive is one frame for a VM; ok is false when it was dropped.
func (r *ring) arrive(t *testing.T, vm int) (m meta.Meta, ok bool) {
	t.Helper()
	frame := tagged(0x8100, vm, ip4(6, 0x4000, nil, tcp(5, 0x10, 100)))
	act, out := r.run(t, frame)
	if act == dropped {
		return m, false
	}
	if act != redirected || !meta.Parse(out, len(frame), &m) {
		t.Fatalf("action %d for VM %d", act, vm)
	}
	return m, true
}

// flood sends until nothing more is admitted, and returns what was.
func (r *ring) flood(t *testing.T, vm, frames int) (in []meta.Meta) {
	t.Helper()
	for range frames {
		if m, ok := r.arrive(t, vm); ok {
			in = append(in, m)
		}
	}
	return in
}

// waiting is how many frames of a VM the account has in the ring.
func (r *ring) waiting(vm int) int {
	v := &r.shares.queue.VMs[vm]
	return int(int16(v.Admitted - v.Taken))
}

func (r *ring) take(frames ...meta.Meta) {
	for _, m := range frames {
		r.shares.Took(m.Port, m.VMTicket, m.QueueTicket)
	}
	r.shares.Publish()
}

// A VM alone gets two thirds, the next one two thirds of the rest, and there is room for a third.
func TestAVMHasTwiceTheRoomThatIsLeft(t *testing.T) {
	r := newRing(t, 300, 3)
	got := moved(t, r.Program, func() { r.flood(t, 1, 1000) })
	if n := r.waiting(1); n != 200 {
		t.Errorf("the first VM has %d frames of 300, want 200", n)
	}
	if got["rx_share"] == 0 || got["redirect"]+got["rx_share"] != 1000 || len(got) != 2 {
		t.Errorf("counted %v", got)
	}
	if all, of := r.shares.Refused(); all != got["rx_share"] || of[1] != all {
		t.Errorf("refused %d, of the VM %d, and XDP dropped %d", all, of[1], got["rx_share"])
	}
	r.flood(t, 2, 1000)
	r.flood(t, 3, 1000)
	if b, c := r.waiting(2), r.waiting(3); b != 67 || c != 22 {
		t.Errorf("the next ones have %d and %d of the 100 that were left, want 67 and 22", b, c)
	}
}

// What a VM was refused is its own, and goes with it; what the queue refused goes on.
func TestRefusalsAreTheVMs(t *testing.T) {
	r := newRing(t, 300, 2)
	r.flood(t, 1, 1000)
	one, _ := r.shares.Refused()
	r.flood(t, 2, 1000)
	all, of := r.shares.Refused()
	if one == 0 || of[1] != one || of[2] == 0 || of[1]+of[2] != all {
		t.Errorf("%d refused, of the VMs %d (%d before the second came) and %d", all, of[1], one, of[2])
	}
	r.shares.Forget(1)
	if now, left := r.shares.Refused(); now != all || left[1] != 0 || left[2] != of[2] {
		t.Errorf("after the first VM has gone: %d refused, %d and %d", now, left[1], left[2])
	}
}

// VMs that all take what they can get end with the same share, whoever came first.
func TestSharesEvenOutAsTheRingIsRead(t *testing.T) {
	r := newRing(t, 300, 3)
	fifo := r.flood(t, 1, 400)
	for range 3000 {
		for vm := 1; vm <= 3; vm++ {
			if m, ok := r.arrive(t, vm); ok {
				fifo = append(fifo, m)
			}
		}
		r.take(fifo[0])
		fifo = fifo[1:]
	}
	for vm := 1; vm <= 3; vm++ {
		if n := r.waiting(vm); n < 300*2/7-4 || n > 300*2/7+4 {
			t.Errorf("VM %d has %d of 300, want two sevenths", vm, n)
		}
	}
}

// What the worker has taken makes room, also of a VM that has left.
func TestTakenFramesMakeRoom(t *testing.T) {
	r := newRing(t, 30, 2)
	in := r.flood(t, 1, 100)
	r.take(in[:10]...) // a probe may be among those behind the first 20
	if n := r.waiting(1); n != 10 {
		t.Errorf("%d of 20 wait after 10 were taken", n)
	}
	if _, ok := r.arrive(t, 1); !ok {
		t.Error("nothing is admitted though there is room")
	}
}

// A frame that is lost between XDP and the ring is in the account no longer than until a later one is taken.
func TestALostFrameIsForgottenWithTheNextOneTaken(t *testing.T) {
	r := newRing(t, 300, 2)
	in := r.flood(t, 1, 150)
	other := r.flood(t, 2, 10)
	r.take(in[149]) // the 149 before never came
	if n := r.waiting(1); n != 0 {
		t.Errorf("%d frames wait", n)
	}
	if n := r.waiting(2); n != 10 {
		t.Errorf("%d frames of the other VM wait", n)
	}
	r.take(other[9])
	if q := r.shares.queue; q.Admitted != q.Taken {
		t.Errorf("%d admitted, %d taken", q.Admitted, q.Taken)
	}
}

// When a VM's whole share was lost, nothing of it comes to be taken. A frame let through puts that right.
func TestAVMWhoseLastFramesWereLostIsHeardAgain(t *testing.T) {
	r := newRing(t, 30, 1)
	r.flood(t, 1, 100)
	end := time.Now().Add(10 * time.Second)
	for {
		m, ok := r.arrive(t, 1)
		if ok {
			if n := r.waiting(1); n != 20 {
				t.Fatalf("the probe takes room: %d wait", n)
			}
			r.take(m)
			break
		}
		if time.Now().After(end) {
			t.Fatal("the VM is never heard again")
		}
	}
	if n := len(r.flood(t, 1, 15)); n != 15 {
		t.Errorf("%d of 15 were admitted to an empty ring", n)
	}
}

// Tickets are compared over the end of 16 bits.
func TestTicketsWrap(t *testing.T) {
	r := newRing(t, 30, 1)
	for i := range 1<<16 + 100 {
		m, ok := r.arrive(t, 1)
		if !ok {
			t.Fatalf("frame %d was dropped in front of an empty ring", i)
		}
		r.take(m)
	}
}

// A queue without a socket has no ring: nothing is dropped in front of it.
func TestWithoutASocketASharesEndIsTheHosts(t *testing.T) {
	r := newRing(t, 30, 1)
	r.flood(t, 1, 100)
	if err := r.ClearSocket(0); err != nil {
		t.Fatal(err)
	}
	frame := tagged(0x8100, 1, ip4(6, 0x4000, nil, tcp(5, 0x10, 100)))
	got := moved(t, r.Program, func() {
		for range 50 {
			if act, _ := r.run(t, frame); act != passed {
				t.Fatalf("action %d", act)
			}
		}
	})
	if got["pass_no_socket"] != 50 || len(got) != 1 {
		t.Errorf("counted %v", got)
	}
}

// A worker that begins on a queue begins with an empty ring, whatever the one before left.
func TestSharesBeginAnewWithTheNextWorker(t *testing.T) {
	r := newRing(t, 30, 2)
	r.flood(t, 1, 100)
	r.flood(t, 2, 100)
	if err := r.shares.Close(); err != nil {
		t.Fatal(err)
	}
	r.share(t, 60)
	r.flood(t, 1, 200)
	if n := r.waiting(1); n != 40 {
		t.Errorf("%d frames of 60, want 40", n)
	}
}

func TestSharesRefuseWhatIsNoRing(t *testing.T) {
	p := loadForTest(t)
	for _, c := range []struct{ queue, room, fill int }{{-1, 10, 10}, {1, 10, 10}, {0, 0, 10}, {0, -1, 10}, {0, 1 << 15, 10}, {0, 10, 1}, {0, 10, -1}, {0, 10, 1<<24 + 1}} {
		if s, err := p.Shares(c.queue, c.room, c.fill); err == nil {
			s.Close()
			t.Errorf("queue %d of 1, room %d, fill ring of %d: taken", c.queue, c.room, c.fill)
		}
	}
}

func TestTookDoesNotAllocate(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	r := newRing(t, 30, 1)
	if n := testing.AllocsPerRun(100, func() {
		for i := range uint16(64) {
			r.shares.Took(uint32(i), i, i)
		}
		r.shares.Publish()
	}); n != 0 {
		t.Errorf("%v allocations a burst", n)
	}
}
