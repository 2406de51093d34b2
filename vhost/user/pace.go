package user

import "time"

const (
	changeBurst = 4096 // two starts of 128 queue pairs and more
	changeRate  = 1000 // a second, for ever
)

// pace bounds how often a front-end may change what runs. Every change stops the
// data goroutines for a moment, and those serve other guests too. The zero value
// is ready.
type pace struct {
	spent float64 // of the burst
	last  time.Time
}

// wait returns how long to wait before the next change, at now.
func (p *pace) wait(now time.Time) time.Duration {
	if !p.last.IsZero() {
		p.spent = max(0, p.spent-now.Sub(p.last).Seconds()*changeRate)
	}
	p.last = now
	p.spent++
	if p.spent <= changeBurst {
		return 0
	}
	return time.Duration((p.spent - changeBurst) / changeRate * float64(time.Second))
}
