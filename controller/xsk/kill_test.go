package xsk

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// kills is a keeper, and the traffic through the owners.
type kills struct {
	rig   *rig
	rec   *record
	c     Config
	parts Parts

	quit     chan struct{}
	stopped  sync.WaitGroup
	stop     func()        // the traffic
	injected atomic.Uint64 // frames sent to the owners
	frames   []uint64      // numbers of those that came from them
}

// own starts an owner. kill kills it and waits for its death.
func (k *kills) own(t *testing.T) (kill func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	owner, theirs := pair[0], os.NewFile(uintptr(pair[1]), "keeper")
	var out bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run", "^TestOwnsASocketUntilKilled$")
	cmd.Env = append(os.Environ(), ownerEnv+"=1")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{theirs}, &out, &out
	msg, err := json.Marshal(k.c)
	fds := append([]int{k.rec.fd}, k.parts.each()...)
	if len(fds) == 1 {
		k.rig.net.B.Do(t, cmd.Start)
	} else { // an heir may live in any namespace
		err = errors.Join(err, cmd.Start())
	}
	theirs.Close()
	if err = errors.Join(err, passFDs(owner, msg, fds...)); err != nil {
		t.Fatal(err)
	}
	if len(fds) == 1 {
		if _, fds, err = takeFDs(owner); err != nil || len(fds) != 3 {
			t.Fatalf("the first owner gave %d descriptors: %v, %s", len(fds), err, &out)
		}
		k.parts = Parts{fds[0], fds[1], fds[2]}
		k.rig.net.B.Do(t, func() error { return k.rig.prog.SetSocket(0, k.parts.Socket) })
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = unix.Close(owner)
	})
	t.Cleanup(end)
	return func() {
		t.Helper()
		end()
		if cmd.ProcessState.ExitCode() != -1 { // not by a signal
			t.Fatalf("the owner ended by itself: %s", &out)
		}
	}
}

// lastTaken is one more than the number of the last frame that an owner took.
func (r *record) lastTaken() uint64 {
	n := atomic.LoadUint64(r.taken)
	if n == 0 {
		return 0
	}
	return r.log[n-1] + 1
}

// inject sends numbered frames to the owners, not more than the rings hold ahead of them.
func (k *kills) inject(t *testing.T) {
	in := k.rig.net.A.Injector(t)
	t.Cleanup(k.stop)
	k.stopped.Go(func() {
		for n := uint64(0); ; {
			select {
			case <-k.quit:
				return
			default:
			}
			if n >= k.rec.lastTaken()+killAhead || n >= killRecords-killAhead {
				time.Sleep(20 * time.Microsecond)
				continue
			}
			if err := in.Send(numbered(n, k.c.longest(), vmMAC)); err != nil {
				t.Error(err)
				return
			}
			n++
			k.injected.Store(n)
		}
	})
}

// capture notes what comes from the owners.
func (k *kills) capture(t *testing.T) {
	c := k.rig.net.A.Capture(t)
	t.Cleanup(k.stop)
	k.stopped.Go(func() {
		arrived := uint64(0)
		for {
			f, ok := c.Poll(200 * time.Millisecond)
			if !ok {
				select {
				case <-k.quit:
					return
				default:
					continue
				}
			}
			n := numberOf(f.Data, k.c.longest(), peerMAC)
			k.frames = append(k.frames, n)
			if n == arrived {
				arrived++
				atomic.StoreUint64(k.rec.arrived, arrived)
			}
		}
	})
}

// A socket's owner is killed again and again while frames go both ways, and another process goes on with what the keeper holds.
func TestAKilledOwnersFramesGoToItsHeir(t *testing.T) {
	netnstest.Need(t, remap)
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for name, o := range map[string]netnstest.Options{"": {}, "jumbo ": {MTU: 9000}} {
		if o.MTU > 0 && (multiBuffer.Check() != nil || netnstest.Wired()) { // igb's XDP has frames in one piece only
			continue
		}
		modes(t, func(t *testing.T, native bool) { killOwners(t, native, rounds, o) }, name)
	}
}

// killOwners does it for one link and one mode of XDP.
func killOwners(t *testing.T, native bool, rounds int, o netnstest.Options) {
	k := &kills{rig: newRig(t, 1, native, o), parts: Parts{-1, -1, -1}, quit: make(chan struct{})}
	k.c = k.rig.config(0, native)
	k.rig.socks[0].Close()
	k.rec = openRecord(t, -1)
	t.Cleanup(func() { _ = k.parts.close() })
	k.stop = sync.OnceFunc(func() {
		close(k.quit)
		k.stopped.Wait()
	})

	k.capture(t)

	died := []uint64{} // frames taken when each owner died
	for round := range rounds {
		kill := k.own(t)
		if round == 0 {
			k.inject(t)
		}
		before, sent := atomic.LoadUint64(k.rec.taken), atomic.LoadUint64(k.rec.sent)
		if !wait(func() bool { return atomic.LoadUint64(k.rec.taken) > before && atomic.LoadUint64(k.rec.sent) > sent }) {
			kill()
			t.Fatalf("round %d: %d frames taken, then %d; %d sent, then %d", round, before, atomic.LoadUint64(k.rec.taken), sent,
				atomic.LoadUint64(k.rec.sent))
		}
		time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond)
		kill()
		died = append(died, atomic.LoadUint64(k.rec.taken))
	}
	k.finish(t)
	k.judgeTaken(t, died)
	k.judgeSent(t)
}

// finish is the last heir: it takes what is left, in this process, and sees that every chunk is where it should be.
func (k *kills) finish(t *testing.T) {
	s, err := Adopt(k.c, k.parts.dup(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Refill()
	time.Sleep(10 * time.Millisecond) // the sender comes to its bound
	var d [killBurst]Desc
	taken, quit := atomic.LoadUint64(k.rec.taken), false
	for idle := 0; idle < 20; idle++ {
		if !wait(func() bool { return s.Flush() == nil && s.TxPending() == 0 }) {
			t.Fatalf("%d frames pending for ever", s.TxPending())
		}
		n := s.Recv(d[:])
		for _, d := range d[:n] {
			f, _ := s.Received(d)
			k.rec.log[taken] = numberOf(f, k.c.longest(), vmMAC)
			taken++
			s.Free(d.Addr)
			idle = 0
		}
		s.Refill()
		if n > 0 {
			continue
		}
		if !quit {
			quit = true
			k.stop()
		}
		time.Sleep(time.Millisecond)
	}
	atomic.StoreUint64(k.rec.taken, taken)
	mustConserve(t, s, k.c.Chunks)
	if !s.ZeroCopy() { // where the driver takes chunks ahead of the frames
		mustBeInItsRing(t, s)
	}
	mustHaveLostNothing(t, s)
	k.rig.mustBringAFrameEach(t, s)
}

// mustBeInItsRing looks for every chunk that is the kernel's where its word says, when nothing is on its way.
func mustBeInItsRing(t *testing.T, s *Socket) {
	t.Helper()
	from := atomic.LoadUint32(s.fill.consumer)
	for i, word := range s.umem.owner {
		at := uint32(word)
		switch word &^ indexBits {
		case inPool:
		case inFill:
			if at-from >= s.fill.cachedP-from || s.fill.entries[at&s.fill.mask]>>s.umem.shift != uint64(i) {
				t.Errorf("chunk %d is lost: entry %d of the fill ring has another, or is used", i, at)
			}
		default:
			t.Errorf("chunk %d: owner %#x", i, word)
		}
	}
}

// judgeTaken wants every frame in order, unchanged, once: but for those that an owner had taken from the ring and not noted.
func (k *kills) judgeTaken(t *testing.T, died []uint64) {
	log := k.rec.log[:atomic.LoadUint64(k.rec.taken)]
	want, inHand := uint64(0), uint64(0)
	for i, n := range log {
		for len(died) > 0 && died[0] < uint64(i) {
			died = died[1:]
		}
		if gap := n - want; gap != 0 {
			if len(died) == 0 || died[0] != uint64(i) || gap > killBurst {
				t.Fatalf("frame %d came for frame %d, entry %d of %d", n, want, i, len(log))
			}
			inHand += gap
		}
		want = n + 1
	}
	if sent := k.injected.Load(); want > sent || sent-want > killBurst {
		t.Errorf("%d frames were sent to the owners, the last one taken is %d", sent, want)
	}
	t.Logf("%d frames taken, %d died with their owners", len(log), inHand)
}

// judgeSent wants every frame that was published on the wire, unchanged, at most twice.
func (k *kills) judgeSent(t *testing.T) {
	sent := atomic.LoadUint64(k.rec.sent)
	times := make([]int, sent+killAhead)
	want, twice := uint64(0), 0
	for _, n := range k.frames {
		if n > want {
			t.Fatalf("frame %d was sent, and before it not %d", n, want)
		}
		if times[n]++; times[n] > 2 {
			t.Fatalf("frame %d was sent %d times", n, times[n])
		}
		if n == want {
			want++
		} else {
			twice++
		}
	}
	if want < sent {
		t.Errorf("%d frames were published, the last one sent is %d", sent, want)
	}
	t.Logf("%d frames sent, %d of them twice", want, twice)
}
