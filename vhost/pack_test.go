package vhost_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// parcel is what Pack hands out, its state as it travels.
type parcel struct {
	state []byte
	files []vhost.NamedFile
}

func pack(t testing.TB, p *vhost.Port) parcel {
	t.Helper()
	st, files, err := p.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	return parcel{b, files}
}

func (c parcel) unpack(cfg vhost.Config) (*vhost.Port, error) {
	st, err := vhost.ReadPortState(c.state)
	if err != nil {
		user.CloseFiles(c.files)
		return nil, err
	}
	return vhost.Unpack(cfg, st, c.files)
}

// handOver packs p and unpacks it.
func handOver(t testing.TB, p *vhost.Port, cfg vhost.Config) *vhost.Port {
	t.Helper()
	c := pack(t, p)
	heir, err := c.unpack(cfg)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.state)
	}
	t.Cleanup(func() { _ = heir.Close() })
	return heir
}

// newHeritable is newPort, with the configuration for who comes after.
func newHeritable(t testing.TB, edit func(*vhost.Config)) (*vhost.Port, vhost.Config, *portLog) {
	t.Helper()
	var cfg vhost.Config
	p, _, log := newPort(t, func(c *vhost.Config) {
		if edit != nil {
			edit(c)
		}
		cfg = *c
	})
	return p, cfg, log
}

func TestAPackedPortGoesOnWithoutItsFrontEndNoticing(t *testing.T) {
	for name, features := range map[string]virtio.Features{"event index": all, "flags": without(all, virtio.FEventIdx)} {
		t.Run(name, func(t *testing.T) {
			p, cfg, log := newHeritable(t, nil)
			g := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Features, c.Pairs, c.RingSize = features, 2, 256 }).start()
			exchange(t, p, g, 0)
			exchange(t, p, g, 1)
			before := len(openFDs(t))
			for i := range 20 {
				g.send(g.TX(0), virtio.NetHdr{}, makeFrame(100+i, byte(i))) // waits in the ring meanwhile
				g.kick(g.TX(0))
				for pair := range 2 { // all kicks and calls are swallowed, and no kick is wanted
					p.RX(pair).AckKick()
					p.TX(pair).AckKick()
					p.TX(pair).DisarmKick()
					g.RX(pair).AckCall()
					g.TX(pair).AckCall()
				}
				was := p.Counters()
				events := len(log.all())
				old := p
				p = handOver(t, p, cfg)
				if s := old.State(); s.Name != vhost.StateClosed || s.Pairs != 0 {
					t.Errorf("the packed port: %+v", s)
				}
				if err := old.Close(); err != nil {
					t.Errorf("close of a packed port: %v", err)
				}
				if _, _, err := old.Pack(); !errors.Is(err, vhost.ErrClosed) {
					t.Errorf("packed twice: %v", err)
				}
				waitFor(t, "start", func() bool { return len(log.all()) == events+2 })
				if e := log.all()[events:]; e[0] != "before stop" || e[1] != "started" {
					t.Fatalf("events %v", e)
				}
				if now := p.Counters(); now.RxFrames != was.RxFrames || now.TxFrames != was.TxFrames || now.Calls < was.Calls {
					t.Errorf("counters %+v, were %+v", now, was)
				}
				for pair := range 2 {
					if g.RX(pair).AckCall() == 0 || g.TX(pair).AckCall() == 0 {
						t.Error("a guest was not called")
					}
					if n := pollReadable(t, p.TX(pair).KickFD(), p.RX(pair).KickFD()); n != 2 {
						t.Errorf("%d of 2 rings count as kicked", n)
					}
				}
				g.send(g.TX(1), virtio.NetHdr{}, makeFrame(60, 1))
				if !g.kick(g.TX(1)) {
					t.Error("the guest need not kick, and nobody looks")
				}
				if n := len(poll(t, p.TX(1), 64)); n != 1 {
					t.Errorf("%d frames", n)
				}
				reap(t, g.TX(1))
				got := poll(t, p.TX(0), 64)
				if len(got) != 1 || !bytes.Equal(got[0], makeFrame(100+i, byte(i))) {
					t.Fatalf("round %d: %d frames", i, len(got))
				}
				reap(t, g.TX(0))
				exchange(t, p, g, 0)
				exchange(t, p, g, 1)
				if err := g.SetCall(g.RX(0), true); err != nil { // the front-end talks to the new one
					t.Fatal(err)
				}
			}
			waitFor(t, "as many descriptors as before", func() bool { return len(openFDs(t)) <= before })
			if s := p.State(); s.Connections != 1 || s.Name != vhost.StateRunning || s.Features != g.Features() || s.Regions != 1 {
				t.Errorf("state %+v", s)
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			if reason := <-log.stopped; !errors.Is(reason, vhost.ErrDisconnected) {
				t.Errorf("reason %v", reason)
			}
			exchange(t, p, newGuest(t, cfg.Socket, nil).start(), 0) // the socket is served as ever
		})
	}
}

func pollReadable(t testing.TB, fds ...int) int {
	t.Helper()
	set := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		set[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	n, err := unix.Poll(set, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Whoever moves frames again when Unpack has returned finds the rings: a frame that came before them would be dropped.
func TestRingsRunWhenThePortIsUnpacked(t *testing.T) {
	p, cfg, _ := newHeritable(t, nil)
	g := newGuest(t, cfg.Socket, nil).start()
	exchange(t, p, g, 0)
	var told atomic.Bool
	cfg.Hooks.Started = func(*vhost.Port) {
		time.Sleep(20 * time.Millisecond) // as on a busy machine
		told.Store(true)
	}
	handOver(t, p, cfg)
	if !told.Load() {
		t.Error("Unpack returned before Hooks.Started did")
	}
}

// What the front-end has said is the same afterwards: also what is half of a start.
func TestEveryStepOfAFrontEndIsHandedOver(t *testing.T) {
	p, cfg, log := newHeritable(t, nil)
	fds := len(openFDs(t))
	s := newScripted(t, cfg.Socket)
	for i, st := range everyHandler() {
		if served := s.play([]step{st}); served != 1 {
			t.Fatalf("step %d, %s: thrown out: %v", i, st.request, <-log.stopped)
		}
		c := pack(t, p)
		heir, err := c.unpack(cfg)
		if err != nil {
			t.Fatalf("step %d, %s: %v\n%s", i, st.request, err, c.state)
		}
		t.Cleanup(func() { _ = heir.Close() })
		p = heir
		d := pack(t, p)
		if p, err = d.unpack(cfg); err != nil {
			t.Fatal(err)
		}
		if a, b := withoutCalls(t, c.state), withoutCalls(t, d.state); !bytes.Equal(a, b) {
			t.Fatalf("step %d, %s: state\n%s\nbecame\n%s", i, st.request, a, b)
		}
	}
	heir := p
	t.Cleanup(func() { _ = heir.Close() })
	s.close()
	if reason := <-log.stopped; !errors.Is(reason, vhost.ErrDisconnected) {
		t.Errorf("reason %v", reason)
	}
	checkAlternating(t, log.take())
	waitFor(t, "as many descriptors as before", func() bool { return len(openFDs(t)) <= fds })
	waitFor(t, "all is unmapped", func() bool { return mapsOf(t, scriptFile) == 0 })
}

// withoutCalls is a state without the calls that were made: a hand-over makes some.
func withoutCalls(t testing.TB, b []byte) []byte {
	t.Helper()
	st, err := vhost.ReadPortState(b)
	if err != nil {
		t.Fatal(err)
	}
	delete(st.Counters, "calls")
	out, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A message of which a part has been sent waits in the socket for whoever comes after, with its descriptors.
func TestAMessageHalfSentIsReadByTheHeir(t *testing.T) {
	g, err := user.NewEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	m := message(user.SetVringCall, user.FlagVersion|user.FlagNeedReply, user.AppendU64(nil, 0))
	for n := 0; n <= len(m); n++ {
		p, cfg, _ := newHeritable(t, nil)
		c := raw(t, cfg.Socket)
		write := func(b []byte, fds ...int) {
			t.Helper()
			var oob []byte
			if len(fds) > 0 {
				oob = unix.UnixRights(fds...)
			}
			if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
				t.Fatal(err)
			}
		}
		write(message(user.SetProtocolFeatures, 1, user.AppendU64(nil, 1<<user.ProtoReplyAck)))
		waitFor(t, "front-end", func() bool { return p.State().Protocol != 0 })
		if n > 0 {
			write(m[:n], g.FD())
		}
		p = handOver(t, p, cfg)
		switch {
		case n == 0:
			write(m, g.FD())
		case n < len(m):
			write(m[n:])
		}
		answer := make([]byte, user.HeaderSize+8)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, answer); err != nil || answer[user.HeaderSize] != 0 {
			t.Errorf("after %d bytes: %v, %x", n, err, answer)
		}
		if st := pack(t, p); !bytes.Contains(st.state, []byte(`"call":"call-0-1-1"`)) {
			t.Errorf("after %d bytes: %s", n, st.state)
		} else {
			user.CloseFiles(st.files)
		}
	}
}

// A port that cannot stop goes on, and nobody has noticed anything.
func TestABusyPortGoesOn(t *testing.T) {
	t.Run("hook", func(t *testing.T) {
		var held atomic.Bool
		release := make(chan struct{})
		p, cfg, log := newHeritable(t, func(c *vhost.Config) {
			c.Hooks.BeforeStop = func(*vhost.Port) {
				if held.Swap(false) {
					<-release
				}
			}
		})
		g := newGuest(t, cfg.Socket, nil).start()
		held.Store(true)
		if _, _, err := p.Pack(); !errors.Is(err, vhost.ErrBusy) {
			t.Fatalf("%v", err)
		}
		close(release)
		goesOn(t, p, g, log, cfg)
	})
	t.Run("queue", func(t *testing.T) {
		p, cfg, log := newHeritable(t, nil)
		g := newGuest(t, cfg.Socket, nil).start()
		if !p.RX(0).Begin() {
			t.Fatal("not running")
		}
		if _, _, err := p.Pack(); !errors.Is(err, vhost.ErrBusy) {
			t.Fatalf("%v", err)
		}
		if err := p.RX(0).Commit(); err != nil {
			t.Error(err)
		}
		goesOn(t, p, g, log, cfg)
	})
	t.Run("message", func(t *testing.T) { // it waits for a queue
		p, cfg, log := newHeritable(t, nil)
		g := newGuest(t, cfg.Socket, nil).start()
		if !p.RX(0).Begin() {
			t.Fatal("not running")
		}
		done := make(chan error, 1)
		go func() { done <- g.SetCall(g.RX(0), true) }()
		time.Sleep(20 * time.Millisecond)
		if _, _, err := p.Pack(); !errors.Is(err, vhost.ErrBusy) {
			t.Fatalf("%v", err)
		}
		if err := p.RX(0).Commit(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		goesOn(t, p, g, log, cfg)
	})
	t.Run("descriptors", func(t *testing.T) {
		p, cfg, log := newHeritable(t, nil)
		g := newGuest(t, cfg.Socket, nil).start()
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		n := uint64(0)
		for fd := range openFDs(t) {
			var k uint64
			for _, d := range fd {
				k = 10*k + uint64(d-'0')
			}
			n = max(n, k)
		}
		for _, spare := range []uint64{1, 3, 5} {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n + spare, Max: was.Max}); err != nil {
				t.Fatal(err)
			}
			_, _, err := p.Pack()
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
			if err == nil {
				t.Skip("allowed: the descriptors had gaps")
			}
			if !errors.Is(err, unix.EMFILE) {
				t.Fatalf("%v", err)
			}
		}
		goesOn(t, p, g, log, cfg)
	})
}

// goesOn fails the test unless the port serves its guest, and can be packed after all.
func goesOn(t *testing.T, p *vhost.Port, g *guest, log *portLog, cfg vhost.Config) {
	t.Helper()
	if err := g.SetCall(g.RX(0), true); err != nil { // answered when the stop that was given up is over
		t.Error(err)
	}
	waitFor(t, "rings run again", func() bool { return p.State().Name == vhost.StateRunning })
	exchange(t, p, g, 0)
	p = handOver(t, p, cfg)
	exchange(t, p, g, 0)
	if n := p.State().Connections; n != 1 || len(log.stopped) != 0 {
		t.Errorf("%d connections, %d ended", n, len(log.stopped))
	}
}

// Whoever comes while nobody is there waits: in the listening socket, or accepted.
func TestAFrontEndThatComesMeanwhileIsServed(t *testing.T) {
	t.Run("nobody before", func(t *testing.T) {
		p, cfg, _ := newHeritable(t, nil)
		c := pack(t, p)
		conn := raw(t, cfg.Socket)
		if _, err := conn.Write(message(user.GetFeatures, 1, nil)); err != nil {
			t.Fatal(err)
		}
		heir, err := c.unpack(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = heir.Close() })
		if _, err := io.ReadFull(conn, make([]byte, user.HeaderSize+8)); err != nil {
			t.Error(err)
		}
	})
	t.Run("accepted", func(t *testing.T) { // the one before has not quite gone
		p, cfg, log := newHeritable(t, nil)
		first := newGuest(t, cfg.Socket, nil).start()
		second := raw(t, cfg.Socket)
		if _, err := second.Write(message(user.GetFeatures, 1, nil)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // for the port to accept it
		c := pack(t, p)
		if !bytes.Contains(c.state, []byte(`"waiting":"waiting"`)) {
			t.Errorf("state %s", c.state)
		}
		heir, err := c.unpack(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = heir.Close() })
		exchange(t, heir, first, 0)
		_ = first.Close()
		<-log.stopped
		if _, err := io.ReadFull(second, make([]byte, user.HeaderSize+8)); err != nil {
			t.Error(err)
		}
	})
	t.Run("dialled", func(t *testing.T) {
		p, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Connect = true })
		p = handOver(t, p, cfg) // while it looks for its front-end
		listen := func(c *user.FrontendConfig) { c.Listen = true }
		g := newGuest(t, cfg.Socket, listen).start()
		exchange(t, p, g, 0)
		p = handOver(t, p, cfg)
		exchange(t, p, g, 0)
		_ = g.Close()
		<-log.stopped
		g = newGuest(t, cfg.Socket, listen).start()
		exchange(t, p, g, 0)
		if n := p.State().Connections; n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// A close that comes meanwhile closes whoever has the port then.
func TestCloseAndPackAtOnce(t *testing.T) {
	fds := len(openFDs(t))
	for i := range 50 {
		p, cfg, log := newHeritable(t, nil)
		g := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Memory = 1 << 20 }).start()
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Microsecond)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		st, files, err := p.Pack()
		wg.Wait()
		if err == nil {
			heir, err := vhost.Unpack(cfg, st, files)
			if err != nil {
				t.Fatal(err)
			}
			exchange(t, heir, g, 0)
			if err := heir.Close(); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, vhost.ErrClosed) {
			t.Error(err)
		}
		<-log.stopped
		_ = g.Close()
		if err := unix.Access(cfg.Socket, unix.F_OK); err == nil {
			t.Error("the socket's file is left")
		}
	}
	waitFor(t, "as many descriptors as before", func() bool { return len(openFDs(t)) <= fds })
}
