package vhost_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// checkAlternating holds the hooks to their contract.
func checkAlternating(t *testing.T, events []string) {
	t.Helper()
	state := "before stop"
	for i, e := range events {
		ok := false
		switch e {
		case "started":
			ok = state != "started"
		case "before pause":
			ok = state == "started"
		case "before stop":
			ok = state == "started" || state == "before pause"
		case "stopped":
			ok, e = state == "before stop", "before stop"
		}
		if !ok {
			t.Fatalf("event %d of %v is out of order", i, events)
		}
		state = e
	}
}

// exchange moves a frame in each direction through a pair.
func exchange(t *testing.T, p *vhost.Port, g *guest, pair int) {
	t.Helper()
	want := makeFrame(1514, byte(pair))
	g.post(g.RX(pair), true, 2048)
	g.kick(g.RX(pair))
	if err := put(t, p.RX(pair), plain(want)); err != nil {
		t.Fatalf("pair %d: %v", pair, err)
	}
	if _, got, _ := g.recv(g.RX(pair)); !bytes.Equal(got, want) {
		t.Fatalf("pair %d: frame differs", pair)
	}
	g.send(g.TX(pair), virtio.NetHdr{}, want)
	g.kick(g.TX(pair))
	if got := poll(t, p.TX(pair), 8); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Fatalf("pair %d: %d frames sent", pair, len(got))
	}
	reap(t, g.TX(pair))
}

func TestTwoPairsWorkAndOneCanBeSwitchedOff(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Pairs = 2 }).start()
	if p.Pairs() != 2 {
		t.Fatalf("%d pairs", p.Pairs())
	}
	for range 3 {
		exchange(t, p, g, 0)
		exchange(t, p, g, 1)
	}
	if err := g.Enable(1, false); err != nil {
		t.Fatal(err)
	}
	if p.Pairs() != 1 || p.RX(1).Begin() {
		t.Error("pair 1 still runs")
	}
	exchange(t, p, g, 0)
	if err := g.Enable(1, true); err != nil {
		t.Fatal(err)
	}
	exchange(t, p, g, 1)
	checkAlternating(t, log.all())
}

func TestTheLargestQueuesWork(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.RingSize, c.Memory = 32768, 16<<20 }).start()
	if s := p.State(); s.QueueSize != 32768 {
		t.Fatalf("%+v", s)
	}
	r := g.RX(0)
	for range 32768 {
		g.post(r, true, 13)
	}
	g.kick(r)
	want := makeFrame(32768*13-12, 1)[:65549] // of buffers of 13 bytes, 5044
	if err := put(t, p.RX(0), plain(want)); err != nil {
		t.Fatal(err)
	}
	if h, got, _ := g.recv(r); h.NumBuffers != 5044 || !bytes.Equal(got, want) {
		t.Errorf("%d bytes in %d buffers", len(got), h.NumBuffers)
	}
	for i := range 7 { // 4617 each
		if err := put(t, p.RX(0), plain(makeFrame(60000, byte(i)))); (err == nil) != (i < 6) {
			t.Errorf("frame %d: %v", i, err)
		}
	}
}

func TestStoppedRingsResumeWhereTheyStopped(t *testing.T) {
	for _, protocol := range []user.ProtocolFeatures{0, user.DefaultProtocol &^ (1 << user.ProtoMemSlots), 1 << user.ProtoMQ} {
		p, socket, log := newPort(t, nil)
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Protocol = protocol }).start()
		settled := func() bool { return p.State().Name == vhost.StateRunning && p.TX(0).KickFD() >= 0 && p.Pairs() == 1 }
		for round := range 3 {
			waitFor(t, "running", settled) // without REPLY_ACK, Start returns early
			exchange(t, p, g, 0)
			g.send(g.TX(0), virtio.NetHdr{}, makeFrame(99, 9)) // left in the ring over the stop
			bases, err := g.Stop()
			if err != nil {
				t.Fatal(err)
			}
			if want := []uint16{uint16(round + 1), uint16(2*round + 1)}; !slices.Equal(bases, want) {
				t.Fatalf("round %d: bases %v, want %v", round, bases, want)
			}
			if p.RX(0).Begin() || p.TX(0).KickFD() != -1 {
				t.Fatal("queue runs after the stop")
			}
			g.start()
			waitFor(t, "running", settled)
			g.kick(g.TX(0))
			if got := poll(t, p.TX(0), 8); len(got) != 1 || len(got[0]) != 99 {
				t.Fatalf("%d frames were left", len(got))
			}
			reap(t, g.TX(0))
		}
		checkAlternating(t, log.all())
	}
}

func TestADriverReloadChangesFeatures(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	for _, f := range []virtio.Features{virtio.Mask(virtio.FVersion1), all, 0, all} {
		if err := g.Renegotiate(f); err != nil {
			t.Fatal(err)
		}
		g.start()
		if p.Features() != f {
			t.Errorf("features %v, want %v", p.Features().Names(), f.Names())
		}
		exchange(t, p, g, 0)
	}
}

func TestStateTellsWhatWasNegotiated(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	if s := p.State(); s.Name != vhost.StateWaiting || s.Reason != "" {
		t.Errorf("at first: %+v", s)
	}
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.MTU, c.RingSize = 1500, 128 })
	waitFor(t, "connected", func() bool { return p.State().Name == vhost.StateConnected })
	g.start()
	s := p.State()
	if s.Name != vhost.StateRunning || s.MTU != 1500 || s.QueueSize != 128 || s.Pairs != 1 || s.Regions != 1 ||
		s.Features != all || s.PeerPID != os.Getpid() || s.Connections != 1 {
		t.Errorf("running: %+v", s)
	}
	_ = g.Close()
	waitFor(t, "waiting", func() bool { return p.State().Name == vhost.StateWaiting })
	if s := p.State(); s.Features != 0 || !errors.Is(s.Err, user.ErrDisconnected) || strings.Contains(s.Reason, "\n") {
		t.Errorf("after: %+v", s)
	}
}

func TestASecondFrontEndIsTurnedAway(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("second connection: %v", err)
	}
	waitFor(t, "log line", func() bool { return log.has("second front-end refused") })
	exchange(t, p, g, 0)
}

func TestAFrontEndMayComeBackAtOnce(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	for range 20 {
		g := newGuest(t, socket, nil).start()
		exchange(t, p, g, 0)
		_ = g.Close()
	}
}

func TestALostConnectionLosesAndRepeatsNoFrame(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	r := g.TX(0)
	for i := range 6 {
		g.send(r, virtio.NetHdr{}, makeFrame(60+i, 1))
	}
	g.kick(r)
	var lens []int
	note := func(frames [][]byte) {
		for _, f := range frames {
			lens = append(lens, len(f))
		}
	}
	note(poll(t, p.TX(0), 4))
	for range 3 {
		g.post(g.RX(0), true, 2000)
	}
	g.kick(g.RX(0))
	if err := put(t, p.RX(0), plain(makeFrame(100, 1))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Reconnect(ctx); err != nil {
		t.Fatal(err)
	}
	note(poll(t, p.TX(0), 64))
	if !slices.Equal(lens, []int{60, 61, 62, 63, 64, 65}) {
		t.Errorf("sent %v", lens)
	}
	for i := range 2 {
		if err := put(t, p.RX(0), plain(makeFrame(101+i, 1))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		if _, b, _ := g.recv(g.RX(0)); len(b) != 100+i {
			t.Errorf("received %d bytes, want %d", len(b), 100+i)
		}
	}
}

func TestAPortThatDialsFindsItsFrontEndAgain(t *testing.T) {
	p, socket, _ := newPort(t, func(c *vhost.Config) { c.Connect = true })
	for range 2 {
		g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Listen = true }).start()
		waitFor(t, "running", func() bool { return p.State().Name == vhost.StateRunning })
		exchange(t, p, g, 0)
		_ = g.Close()
		waitFor(t, "waiting", func() bool { return p.State().Name == vhost.StateWaiting })
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for name, cfg := range map[string]vhost.Config{
		"pairs":    {Socket: "/tmp/never", MaxPairs: 129},
		"negative": {Socket: "/tmp/never", MaxPairs: -1},
		"buffers":  {Socket: "/tmp/never", MaxBuffers: -1},
		"features": {Socket: "/tmp/never", Offer: virtio.Mask(virtio.FGuestTSO4)},
	} {
		if p, err := vhost.NewPort(cfg); !errors.Is(err, vhost.ErrConfig) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = p.Close()
			}
		}
	}
}

func TestCloseWhileRunningStopsInOrder(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if reason := <-log.stopped; reason != nil {
		t.Errorf("reason %v", reason)
	}
	checkAlternating(t, log.all())
	if s := p.State(); s.Name != vhost.StateClosed {
		t.Errorf("state %s", s.Name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Gone(ctx); !errors.Is(err, user.ErrDisconnected) {
		t.Errorf("front-end sees %v", err)
	}
}

func TestHeldFramesAreDeliveredBeforeTheRingStops(t *testing.T) {
	delivered := make(chan error, 16)
	_, socket, _ := newPort(t, func(c *vhost.Config) {
		var held *virtio.Frame
		c.Hooks = vhost.Hooks{
			Started: func(p *vhost.Port) {
				if p.Pairs() == 1 {
					held = plain(makeFrame(777, 1))
				}
			},
			BeforeStop: func(p *vhost.Port) {
				if held != nil && p.RX(0).Begin() {
					delivered <- p.RX(0).Put(held)
					p.RX(0).Commit()
				}
			},
		}
	})
	g := newGuest(t, socket, nil).start()
	g.post(g.RX(0), true, 2000)
	g.post(g.RX(0), true, 2000)
	g.kick(g.RX(0))
	bases, err := g.Stop()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for len(delivered) > 0 { // while the rings started there were no buffers yet
		if err := <-delivered; err == nil {
			n++
		} else if !errors.Is(err, vhost.ErrNoBuffers) {
			t.Error(err)
		}
	}
	if n != 1 || bases[0] != 1 {
		t.Errorf("%d frames delivered, base %d", n, bases[0])
	}
	if _, b, ok := g.recv(g.RX(0)); !ok || len(b) != 777 {
		t.Error("held frame not there when the reply came")
	}
}

func TestADataPathThatHangsDoesNotHangTheFrontEnd(t *testing.T) {
	t.Parallel()
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	if !p.RX(0).Begin() {
		t.Fatal("not running")
	}
	if _, err := g.Stop(); err == nil {
		t.Error("stopped while a burst is under way")
	}
	p.RX(0).Commit()
	if reason := <-log.stopped; !errors.Is(reason, vhost.ErrQueueStuck) {
		t.Errorf("reason %v", reason)
	}
	g = newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
}

// A front-end that comes and goes is no trouble, and not logged as one; one that is thrown out is.
func TestComingAndGoingIsNoTrouble(t *testing.T) {
	var notes portLog
	p, socket, log := newPort(t, func(c *vhost.Config) { c.Notef = notes.logf })
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	<-log.stopped
	if !notes.has("front-end connected") || !notes.has("front-end disconnected") || log.has("front-end") {
		t.Errorf("notes %q, trouble %q", notes.all(), log.all())
	}
	c := raw(t, socket)
	if _, err := c.Write(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	<-log.stopped
	if !log.has("thrown out") || notes.has("thrown out") {
		t.Errorf("notes %q, trouble %q", notes.all(), log.all())
	}
}
