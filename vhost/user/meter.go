package user

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What one operation on a peer's eventfd may cost. It takes a microsecond, plus
// 50 ns for everyone who watches the eventfd: each is told, by the thread that
// adds or reads. A peer that watches its own from 20,000 epoll instances makes a
// call take a millisecond, of a worker that serves other guests too; with the
// million watches that a user may have, it takes 50. What is over the allowance
// adds up, what is under it is paid back, and more than the credit is no accident:
// interrupts that are booked on a thread come to a few microseconds a call at
// worst, even under a flood.
const (
	meterSlow      = 20 * time.Microsecond // by the clock: then it is measured in CPU time
	meterAllowance = 20 * time.Microsecond
	meterOnce      = 10 * time.Millisecond // the most that one operation may add
	meterCredit    = 50 * time.Millisecond
	meterLook      = 8 // operations measured after a slow one
	meterSample    = 4 // otherwise one of so many is
)

// meter adds up what operations on one eventfd cost. Reading the CPU clock takes a
// system call, and the wall clock alone would blame the peer for the threads that
// ran in between; so CPU time is read only while there is a suspicion. Safe for
// concurrent use.
type meter struct {
	uses atomic.Uint32
	look atomic.Int32
	debt atomic.Int64 // ns
}

// reading is the clocks before an operation.
type reading struct {
	on   bool
	wall time.Time
	cpu  int64 // of this thread in ns; 0: not read
	tid  int
}

func (m *meter) begin() (r reading) {
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

func (m *meter) end(r reading) {
	if !r.on {
		return
	}
	if time.Since(r.wall) < meterSlow {
		if m.debt.Load() > 0 {
			m.add(-meterAllowance)
		}
		if r.cpu != 0 {
			m.look.Add(-1)
		}
		return
	}
	m.look.Store(meterLook)
	if r.cpu == 0 || r.tid != unix.Gettid() {
		return
	}
	m.add(min(time.Duration(threadCPU()-r.cpu), meterOnce) - meterAllowance)
}

func (m *meter) add(d time.Duration) {
	if m.debt.Add(int64(d)) < 0 {
		m.debt.Store(0) // somebody else's payment in between may be lost
	}
}

// costly says that the credit is used up.
func (m *meter) costly() bool { return m.debt.Load() > int64(meterCredit) }

func threadCPU() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
