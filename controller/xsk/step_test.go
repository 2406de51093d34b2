package xsk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// An owner is stopped after every instruction of every call, and after every store an heir makes its account of the memory
// as it is then. The kernel's part is played here, also between two instructions of the owner, so who has which chunk
// is known.

const (
	stepEnv    = "RSCCTL_TEST_XSK_STEPS"
	stepChunks = 12
	stepRing   = 4
	stepKeep   = 4                       // the reserve
	stepStart  = 0xfffffffa              // of all indices: they soon wrap
	stepPart   = 256                     // bytes of the control words, the owners, each ring
	stepFrame  = SmallChunk + frameGrain // of a buffer, where there are any
	stepFrames = 3
	stepSize   = 6*stepPart + stepChunks*SmallChunk + stepFrames*stepFrame
)

// What the owner is told to do.
const (
	stepRefill = iota
	stepRecv
	stepFree
	stepSend
	stepSendReceived
	stepAlloc
	stepPublish
	stepFlush
	stepCalls
)

// stepMemory is a file that the owner and this process share: words of control, and what a socket is made of.
type stepMemory struct {
	fakeMemory
	shared      []byte  // owners and rings
	thread      *uint64 // the owner's, 0 until it is ready
	call        *uint64 // what it is to do
	asked, done *uint64 // how many calls
}

func mapSteps(t *testing.T, fd, frame int) *stepMemory {
	t.Helper()
	mem, err := unix.Mmap(fd, 0, stepSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	w := wordsOf(mem[:stepPart])
	m := stepOver(mem[stepPart:])
	m.frame = frame
	return &stepMemory{m, mem[stepPart : 6*stepPart], &w[0], &w[1], &w[2], &w[3]}
}

func stepOver(mem []byte) fakeMemory {
	part := func(i int) []byte { return mem[i*stepPart : (i+1)*stepPart] }
	return fakeMemory{mem[5*stepPart:], owners(wordsOf(part(0))[:stepChunks]), part(1), part(2), part(3), part(4), SmallChunk, 0}
}

// TestMakesCallsOneByOne is run by the next test, in a process of its own.
func TestMakesCallsOneByOne(t *testing.T) {
	frame, err := strconv.Atoi(os.Getenv(stepEnv))
	if err != nil {
		return
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it would only be in the way
	m := mapSteps(t, 3, frame)
	s := m.socket(stepRing, stepKeep)
	hand := make([]uint64, 0, stepChunks)
	var d [3]Desc
	atomic.StoreUint64(m.thread, uint64(unix.Gettid()))
	for done := uint64(0); ; done++ {
		atomic.StoreUint64(m.done, done)
		for atomic.LoadUint64(m.asked) == done {
			runtime.Gosched()
		}
		switch *m.call {
		case stepRefill:
			s.Refill()
		case stepRecv:
			for _, d := range d[:s.Recv(d[:])] {
				hand = append(hand, d.Addr)
			}
		case stepFree:
			if len(hand) > 0 {
				s.Free(hand[0])
				hand = hand[:copy(hand, hand[1:])]
			}
		case stepSend:
			if _, d, ok := s.AllocLarge(); ok {
				if !s.Send(d, SmallChunk) {
					s.Free(d.Addr)
				}
			} else if s.TxRoom() > 0 {
				_, d, _ := s.AllocTx()
				s.Send(d, 60)
			}
		case stepSendReceived:
			if n := len(hand); n > 0 && s.Send(Desc{Addr: hand[n-1]}, 60) {
				hand = hand[:n-1]
			}
		case stepAlloc:
			if _, d, ok := s.AllocTx(); ok {
				hand = append(hand, d.Addr)
			}
		case stepPublish:
			s.Publish()
		case stepFlush:
			_ = s.Flush()
		}
	}
}

// stepKernel is the kernel's side, with a driver that holds chunks.
type stepKernel struct {
	*fakeKernel
	pieces int      // of each frame that comes
	driver []uint64 // to receive into
	sender []uint64 // on their way out
}

// move does one thing that a kernel does, if it can.
func (k *stepKernel) move(what int) {
	var addr [1]uint64
	var d [1]Desc
	switch what {
	case 0:
		if consume(&k.fill, addr[:]) == 1 {
			k.driver = append(k.driver, addr[0])
		}
	case 1:
		if len(k.driver) >= k.pieces && int(k.rx.room(uint32(k.pieces))) >= k.pieces {
			for i := range k.pieces {
				k.rx.put(Desc{Addr: k.driver[i] + Headroom, Len: 60})
				if i < k.pieces-1 {
					k.rx.entries[(k.rx.cachedP-1)&k.rx.mask].options = unix.XDP_PKT_CONTD
				}
			}
			k.rx.publish()
			k.driver = k.driver[k.pieces:]
		}
	case 2:
		if consume(&k.tx, d[:]) == 1 {
			k.sender = append(k.sender, d[0].Addr)
		}
	case 3:
		if len(k.sender) > 0 && k.comp.room(1) > 0 {
			k.comp.entries[k.comp.cachedP&k.comp.mask] = k.sender[0]
			k.comp.cachedP++
			k.comp.publish()
			k.sender = k.sender[1:]
		}
	}
}

// has lists the chunks that are the kernel's, first those to receive into, and reports how many those are.
func (k *stepKernel) has() (chunks []uint64, receive int) {
	all := slices.Clone(k.driver)
	for at := k.fill.cachedC; at != atomic.LoadUint32(k.fill.producer); at++ {
		all = append(all, k.fill.entries[at&k.fill.mask])
	}
	for at := atomic.LoadUint32(k.rx.consumer); at != k.rx.cachedP; at++ {
		all = append(all, k.rx.entries[at&k.rx.mask].addr)
	}
	receive = len(all)
	all = append(all, k.sender...)
	for at := k.tx.cachedC; at != atomic.LoadUint32(k.tx.producer); at++ {
		all = append(all, k.tx.entries[at&k.tx.mask].addr)
	}
	for at := atomic.LoadUint32(k.comp.consumer); at != k.comp.cachedP; at++ {
		all = append(all, k.comp.entries[at&k.comp.mask])
	}
	for i := range all {
		all[i] /= SmallChunk
	}
	return all, receive
}

// heirs lets an heir of the memory as it is make its account, and heirs of heirs that died after each store of theirs.
func (k *stepKernel) heirs(t *testing.T, shared []byte) {
	t.Helper()
	chunks, receive := k.has()
	sorted := slices.Sorted(slices.Values(chunks))
	if len(slices.Compact(sorted)) != len(chunks) {
		t.Fatalf("a chunk is twice with the kernel: %v", chunks)
	}
	if next := atomic.LoadUint32(k.rx.consumer); k.rx.cachedP-next < k.rx.size && k.rx.entries[(next-1)&k.rx.mask].options != 0 {
		t.Fatal("an heir would begin in the middle of a frame")
	}
	account := func(m fakeMemory, who string) {
		t.Helper()
		s := m.socket(stepRing, stepKeep)
		sent, err := s.umem.owner.settle(s.umem.shift, &s.rx, &s.tx, &s.fill, &s.comp)
		if err != nil {
			t.Fatalf("%s: %v", who, err)
		}
		s = m.socket(stepRing, stepKeep)
		if sent != len(chunks)-receive {
			t.Fatalf("%s: %d sent, the kernel has %d to send", who, sent, len(chunks)-receive)
		}
		for i := range uint64(stepChunks) {
			switch kernels, pools := slices.Contains(chunks, i), slices.Contains(s.umem.free, i*SmallChunk); {
			case kernels && pools:
				t.Fatalf("%s: chunk %d is in two hands", who, i)
			case !kernels && !pools:
				t.Fatalf("%s: chunk %d is lost", who, i)
			}
		}
	}
	before := append(bytes.Clone(shared), make([]byte, stepChunks*SmallChunk)...)
	after := bytes.Clone(before)
	account(stepOver(after), "heir")
	account(stepOver(after), "heir of an heir")
	for i := range stepChunks { // settle stores from the first to the last
		crashed := bytes.Clone(before)
		copy(stepOver(crashed).owner, stepOver(after).owner[:i])
		account(stepOver(crashed), "heir of one that died in its account")
	}
}

// stepper runs one thread of another process instruction by instruction.
type stepper struct {
	t      *testing.T
	thread int
	steps  int
}

func (p *stepper) stopped() {
	p.t.Helper()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(p.thread, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || !ws.Stopped() {
			p.t.Fatalf("the owner is gone: %v, %#x", err, ws)
		}
		return
	}
}

func (p *stepper) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("ptrace: %v", err)
	}
}

// step lets it make one instruction. A signal that is for it is the scheduler's, and not needed.
func (p *stepper) step() {
	p.t.Helper()
	p.must(unix.PtraceSingleStep(p.thread))
	p.stopped()
	p.steps++
}

func TestAnHeirsAccountIsRightAfterEveryInstruction(t *testing.T) {
	for name, frame := range map[string]int{"frames in a chunk": 0, "frames in several": stepFrame} {
		t.Run(name, func(t *testing.T) { stepThrough(t, frame) })
	}
}

func stepThrough(t *testing.T, frame int) {
	const most = 1000
	calls := most
	if testing.Short() {
		calls = 60 // and more where the traffic, which is random, has not wrapped the indices yet
	}
	fd, err := newMemory("steps", stepSize)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "steps")
	t.Cleanup(func() { file.Close() })
	m := mapSteps(t, fd, frame)
	for _, ring := range [][]byte{m.fill, m.comp, m.rx, m.tx} {
		*word(ring, fakeOffsets.Producer), *word(ring, fakeOffsets.Consumer) = stepStart, stepStart
	}
	k := &stepKernel{fakeKernel: m.kernel(m.socket(stepRing, stepKeep)), pieces: 1}
	if frame > 0 {
		k.pieces = 2
	}

	runtime.LockOSThread() // the thread that traces
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestMakesCallsOneByOne$")
	cmd.Env = append(os.Environ(), stepEnv+"="+strconv.Itoa(frame), "GODEBUG=asyncpreemptoff=1")
	cmd.ExtraFiles = []*os.File{file}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		var ws unix.WaitStatus
		for thread := int(atomic.LoadUint64(m.thread)); thread != 0; { // the process ends when who traces its thread has seen that end
			if _, err := unix.Wait4(thread, &ws, unix.WALL, nil); err != unix.EINTR && (err != nil || !ws.Stopped()) {
				break
			}
		}
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	if !wait(func() bool { return atomic.LoadUint64(m.thread) != 0 }) {
		end()
		t.Fatalf("the owner did not come: %s", &out)
	}
	p := &stepper{t: t, thread: int(atomic.LoadUint64(m.thread))}
	p.must(unix.PtraceSeize(p.thread))

	const seed = 11
	random := rand.New(rand.NewPCG(seed, 0))
	states, before := 0, bytes.Clone(m.shared)
	look := func() {
		if bytes.Equal(before, m.shared) {
			return
		}
		copy(before, m.shared)
		states++
		k.heirs(t, m.shared)
	}
	wrapped := func() bool { return k.rx.cachedP < stepStart && k.comp.cachedP < stepStart }
	call := uint64(0)
	for ; call < uint64(calls) || !wrapped() && call < most; call++ {
		p.must(unix.PtraceInterrupt(p.thread))
		p.stopped()
		if call == 0 {
			p.must(unix.PtraceSetOptions(p.thread, unix.PTRACE_O_EXITKILL))
		}
		*m.call = uint64(random.IntN(stepCalls))
		atomic.StoreUint64(m.asked, call+1)
		for from := p.steps; atomic.LoadUint64(m.done) <= call; {
			p.step()
			look()
			if random.IntN(64) == 0 {
				k.move(random.IntN(4))
				look()
			}
			if p.steps-from > 1_000_000 {
				t.Fatalf("call %d does not end", *m.call)
			}
		}
		if err := unix.PtraceCont(p.thread, 0); err != nil {
			t.Fatalf("ptrace: %v", err)
		}
	}
	t.Logf("%d calls, %d instructions, %d states of the memory; %d chunks received into, %d sent",
		call, p.steps, states, k.rx.cachedP-stepStart, k.comp.cachedP-stepStart)
	if !wrapped() {
		t.Error("the indices did not wrap: too little traffic to say something")
	}
}
