package vhost_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// newFerry is a port with a worker and a guest with traffic both ways.
func newFerry(t *testing.T, features virtio.Features) (p *vhost.Port, cfg vhost.Config, log *portLog, g *ferryGuest, w *worker) {
	t.Helper()
	w = newWorker(&ferryBook{}, func(err error) { t.Error(err) })
	p, cfg, log = newHeritable(t, func(c *vhost.Config) { w.hooks(&c.Hooks) })
	f := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Features, c.RingSize, c.Memory = features, ferryBufs, 1<<20 })
	t.Cleanup(w.stop)
	f.start() // first: what is sent before a ring is enabled is dropped
	g = newFerryGuest(t, f.Frontend, false)
	return p, cfg, log, g, w
}

// Traffic in both directions goes on across fifty hand-overs: nothing is lost, nothing comes twice, and the front-end still has
// its first connection.
func TestTrafficGoesOnAcrossHandOvers(t *testing.T) {
	for name, features := range map[string]virtio.Features{"event index": all, "flags": without(all, virtio.FEventIdx)} {
		t.Run(name, func(t *testing.T) {
			p, cfg, log, g, w := newFerry(t, features)
			for range 50 {
				g.moves(200)
				p = handOver(t, p, cfg)
				g.check()
			}
			g.moves(1000)
			g.stop()
			g.check()
			if n := p.State().Connections; n != 1 || len(log.stopped) > 0 {
				t.Errorf("%d connections, %d ended", n, len(log.stopped))
			}
			w.stop()
			c := p.Counters()
			if to, from := w.book.toGuest.Load(), w.book.fromGuest.Load(); c.RxFrames != to || c.TxFrames != from || w.book.again.Load() != 0 {
				t.Errorf("%d to the guest and %d from it, %d twice; counters %+v", to, from, w.book.again.Load(), c)
			}
			t.Logf("%d frames to the guest, %d from it", w.book.toGuest.Load(), w.book.fromGuest.Load())
		})
	}
}

// The front-end starts, stops and moves its rings all the while, and waits for each answer.
func TestAFrontEndThatTalksAllTheWhileSeesNoHandOver(t *testing.T) {
	p, cfg, log, g, _ := newFerry(t, all)
	quit, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			var err error
			switch i % 4 {
			case 0:
				err = g.SetCall(g.RX(0), true)
			case 1:
				_, err = g.Stop()
			case 2:
				err = g.Start()
			case 3:
				err = g.Enable(0, true)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	packs, busy := 0, 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		st, files, err := p.Pack()
		if errors.Is(err, vhost.ErrBusy) {
			busy++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		heir, err := vhost.Unpack(cfg, st, files)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = heir.Close() })
		p = heir
		packs++
		g.check()
	}
	close(quit)
	if err := <-done; err != nil {
		t.Errorf("the front-end: %v", err)
	}
	if _, err := g.Stop(); err != nil { // whether they run or not
		t.Error(err)
	}
	if err := g.Start(); err != nil {
		t.Error(err)
	}
	g.moves(1000)
	if n := p.State().Connections; n != 1 || len(log.stopped) > 0 {
		t.Errorf("%d connections, %d ended", n, len(log.stopped))
	}
	if packs < 20 {
		t.Errorf("%d hand-overs, %d times busy", packs, busy)
	}
	t.Logf("%d hand-overs, %d times busy", packs, busy)
}
