package xsk

import "golang.org/x/sys/unix"

// How the kernel polls for a socket that asks for it: pollMicros only has to be above 0, as BusyPoll never waits, and pollBudget is how
// many frames the driver takes at once.
const (
	pollMicros = 20
	pollBudget = 64
)

// preferPoll says whether the driver is to leave the queue to BusyPoll while that is called often enough (SO_PREFER_BUSY_POLL, Linux 5.11).
// How long it is left alone is the interface's napi_defer_hard_irqs and gro_flush_timeout (kernel: Documentation/networking/napi.rst).
// Errors: ErrUnsupported, ErrPermission.
func (s *Socket) preferPoll(on bool) error {
	micros, prefer := 0, 0
	if on {
		micros, prefer = pollMicros, 1
		if err := unix.SetsockoptInt(s.parts.Socket, unix.SOL_SOCKET, unix.SO_BUSY_POLL_BUDGET, pollBudget); err != nil {
			return explain("busy polling", err)
		}
	}
	if err := unix.SetsockoptInt(s.parts.Socket, unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, prefer); err != nil {
		return explain("busy polling", err)
	}
	return explain("busy polling", unix.SetsockoptInt(s.parts.Socket, unix.SOL_SOCKET, unix.SO_BUSY_POLL, micros))
}

// BusyPoll runs the driver's poll of this queue once, on this thread, where Config.BusyPoll asked for it. What it finds, Recv has.
func (s *Socket) BusyPoll() { _ = s.wakeRx() }
