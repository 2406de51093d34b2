package controller

import "time"

// hangNews is how often the log speaks of a queue's hangs at most: on a busy machine there may be many short ones.
const hangNews = time.Minute

// checkHangs looks whether XDP has taken a worker for hung. One that it takes for hung now is woken: it may only wait for a frame that
// was lost on its way, and then it goes on. The log says what happened once for all that happened since it last did.
func (u *uplink) checkHangs(now time.Time) {
	for _, q := range u.queues {
		h := q.shares.Hangs()
		if h.Now {
			q.Wake()
		}
		if h.Times == q.said.Times || now.Sub(q.saidAt) < hangNews {
			continue
		}
		u.log.Warn("a worker took nothing while frames waited: VMs on taps had the kernel's path",
			"queue", q.id, "times", h.Times-q.said.Times, "frames", h.Passed-q.said.Passed, "still", h.Now)
		q.said, q.saidAt = h, now
	}
}
