package vhost

import (
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/vring"
)

// device is the Port as its session sees it. It runs on the control goroutine.
type device struct {
	p    *Port
	told hook
}

// hook is what the owner of the port was told last.
type hook int

const (
	toldStop hook = iota // or nothing yet
	toldPause
	toldStart
)

// starter is either direction of queue.
type starter interface {
	startRing(r user.RingSetup) error
	stopRing() (base vring.Position, err error)
}

func (d *device) ring(index int) (starter, *queue) {
	if index%2 == 0 {
		q := d.p.rx[index/2]
		return q, &q.queue
	}
	q := d.p.tx[index/2]
	return q, &q.queue
}

func (d *device) BeforeChange(pause bool) {
	h := &d.p.cfg.Hooks
	switch {
	case d.told == toldStop, d.told == toldPause && pause:
	case pause && h.BeforePause != nil:
		d.tell(toldPause, h.BeforePause)
	default:
		d.tell(toldStop, h.BeforeStop)
	}
}

func (d *device) AfterChange() {
	h := &d.p.cfg.Hooks
	switch started := d.p.started(); {
	case started && d.told != toldStart:
		d.tell(toldStart, h.Started)
	case !started && d.told == toldPause:
		d.tell(toldStop, h.BeforeStop)
	}
}

func (d *device) tell(what hook, f func(*Port)) {
	d.told = what
	if f != nil {
		f(d.p)
	}
}

func (d *device) StartRing(r user.RingSetup) error {
	s, _ := d.ring(r.Index)
	return s.startRing(r)
}

func (d *device) StopRing(index int) (base vring.Position, err error) {
	s, _ := d.ring(index)
	return s.stopRing()
}

// EnableRing takes the queue's lock even to switch on: when it returns, no burst
// of the old state is under way.
func (d *device) EnableRing(index int, on bool) error {
	_, q := d.ring(index)
	if err := q.lock(); err != nil {
		return err
	}
	defer q.unlock()
	q.enabled = on
	q.active.Store(on && q.dev != nil)
	return nil
}

func (d *device) SetCall(index int, call *user.EventFD) error {
	_, q := d.ring(index)
	if err := q.lock(); err != nil {
		return err
	}
	defer q.unlock()
	q.setCall(call)
	return nil
}
