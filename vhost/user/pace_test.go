package user

import (
	"errors"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost/virtio"
)

func TestChangesAreFreeUntilThereAreTooMany(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	spend := func(n int) (waited time.Duration) {
		for range n {
			d := p.wait(now)
			now = now.Add(d)
			waited += d
		}
		return waited
	}
	if d := spend(changeBurst); d != 0 {
		t.Errorf("a start waits for %v", d)
	}
	if d := spend(3 * changeRate); d < 2900*time.Millisecond || d > 3100*time.Millisecond {
		t.Errorf("%d more wait for %v, want 3 s", 3*changeRate, d)
	}
	now = now.Add(time.Hour)
	if d := spend(changeBurst); d != 0 {
		t.Errorf("an hour later a start waits for %v", d)
	}
	if d := spend(1); d == 0 {
		t.Error("an hour of silence buys more than a burst")
	}
}

func TestEveryChangeOfWhatRunsIsPaced(t *testing.T) {
	for name, tt := range map[string]struct {
		do    func(p *peer)
		paced bool
	}{
		"a switch that changes nothing": {func(p *peer) { p.send(SetVringEnable, 0, state(0, 0)) }, false},
		"a switch of a stopped ring":    {func(p *peer) { p.send(SetVringEnable, 0, state(1, 1)) }, false},
		"a ring that starts":            {func(p *peer) { p.startRing(0, 0) }, true},
		"a reset":                       {func(p *peer) { p.send(ResetDevice, 0, nil) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			p.send(SetFeatures, 0, u64(protocolF|1<<virtio.FVersion1))
			p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
			tt.do(p)
			p.settle()
			if err := p.end(); !errors.Is(err, ErrDisconnected) {
				t.Fatal(err)
			}
			if paced := !p.s.pace.last.IsZero(); paced != tt.paced {
				t.Errorf("paced: %v", paced)
			}
		})
	}
}
