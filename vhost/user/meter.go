package user

import (
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What one operation on a peer's eventfd may cost. It takes a microsecond, plus
// 50 ns for everyone who watches the eventfd: each is told, by the thread that
// adds or reads. A peer that watches its own from 20,000 epoll instances makes a
// call take a millisecond, of a worker that serves other guests too; with the
// million watches that a user may have, it takes 50. What is over the allowance
// adds up, and what is under it is paid back. With more than the credit the
// worker is spared: a call is left to the ringer, whose pace is its own cost, and a
// kick is not read. Each of those pays an allowance back, so a worker spends the
// credit once and then one allowance an operation on average, whatever a peer does.
//
// Nobody is blamed: the kernel books an interrupt's work on the thread that it
// interrupts, so an honest peer of a busy or an emulated machine may come to look
// costly, and loses nothing but speed. That it does so seldom, the times are
// multiplied by how much slower than a machine of today this one is, which
// calibrate finds out.
const (
	meterAllowance = 20 * time.Microsecond
	meterCredit    = 50 * time.Millisecond
	meterMost      = time.Second // of debt: the machine may have slept for an hour
	meterLook      = 8           // operations measured after a slow one
	meterSample    = 4           // otherwise one of so many is
	meterMargin    = 16          // the allowance is at least so many operations on an eventfd that nobody watches
	meterRounds    = 8           // of which the fastest counts
	meterMaxFactor = 128
)

// Meter adds up what operations on a ring's eventfds cost: calls with one, kicks
// with another. It belongs to the ring, not to the eventfd or the connection,
// which a peer replaces as often as it likes. Reading the CPU clock takes a system
// call, so it is read only while there is a suspicion; the first slow operation
// counts by the wall clock, with the threads that ran in between. Make it with
// NewMeters; a nil one measures nothing. Safe for concurrent use.
type Meter struct {
	factor int64 // how much slower than meant this machine is; 0 is 1
	uses   atomic.Uint32
	look   atomic.Int32
	debt   atomic.Int64 // ns
	spared atomic.Uint64
}

// NewMeters makes n meters, for this machine.
func NewMeters(n int) []*Meter {
	factor := calibrate()
	out := make([]*Meter, n)
	for i := range out {
		out[i] = &Meter{factor: factor}
	}
	return out
}

// calibrate measures this machine on an eventfd of our own, in CPU time of this thread: no peer can make it slower or faster. It takes
// a few dozen system calls. Without a descriptor to spare, the machine counts as one of today.
func calibrate() int64 {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 1
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fastest := int64(math.MaxInt64)
	var value [8]byte
	for range meterRounds {
		before := threadCPU()
		_, _ = unix.Write(fd, eventOne[:])
		_, _ = unix.Read(fd, value[:])
		if took := threadCPU() - before; took > 0 {
			fastest = min(fastest, took)
		}
	}
	if fastest == math.MaxInt64 {
		return 1
	}
	return factorOf(fastest)
}

// factorOf tells from the CPU time in ns of one operation how much slower than meant a machine is.
func factorOf(fastest int64) int64 {
	return min(max(1, min(fastest, int64(time.Second))*meterMargin/int64(meterAllowance)), meterMaxFactor)
}

// scaled is a time of the constants above, on this machine.
func (m *Meter) scaled(d time.Duration) time.Duration {
	if m == nil {
		return d
	}
	return d * time.Duration(max(m.factor, 1))
}

// reading is the clocks before an operation.
type reading struct {
	on   bool
	wall time.Time
	cpu  int64 // of this thread in ns; 0: not read
	tid  int
}

func (m *Meter) begin() (r reading) {
	if m == nil {
		return r
	}
	suspect := m.look.Load() > 0
	if r.on = suspect || m.uses.Add(1)%meterSample == 0; !r.on {
		return r
	}
	if suspect {
		r.cpu, r.tid = threadCPU(), unix.Gettid()
	}
	r.wall = time.Now()
	return r
}

func (m *Meter) end(r reading) {
	if !r.on {
		return
	}
	allowance := m.scaled(meterAllowance)
	took := time.Since(r.wall)
	if took < allowance {
		if m.debt.Load() > 0 {
			m.add(-allowance)
		}
		if r.cpu != 0 {
			m.look.Add(-1)
		}
		return
	}
	m.look.Store(meterLook)
	if r.cpu != 0 && r.tid == unix.Gettid() {
		took = time.Duration(threadCPU() - r.cpu)
	}
	m.add(took - allowance)
}

func (m *Meter) add(d time.Duration) {
	now := m.debt.Add(int64(d))
	if kept := min(max(now, 0), int64(m.scaled(meterMost))); kept != now {
		m.debt.Store(kept) // somebody else's payment in between may be lost
	}
}

// Spared is how often a Call or a Drain went the cheap way.
func (m *Meter) Spared() uint64 { return m.spared.Load() }

// Over says that the credit is used up.
func (m *Meter) Over() bool { return m != nil && m.debt.Load() > int64(m.scaled(meterCredit)) }

// spare says that the credit is used up: do the cheap thing, which pays back an allowance.
func (m *Meter) spare() bool {
	if !m.Over() {
		return false
	}
	m.spared.Add(1)
	m.add(-m.scaled(meterAllowance))
	return true
}

// ofCall runs call and tells how much CPU time over the allowance it took of this thread.
func (m *Meter) ofCall(call func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadCPU()
	call()
	return max(0, time.Duration(threadCPU()-before)-m.scaled(meterAllowance))
}

func threadCPU() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
