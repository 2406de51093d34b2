package controller

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// What a request cannot mean, and what is not there, is refused before anything is put anywhere.
func TestListenersThatCannotBeAreRefused(t *testing.T) {
	ctl := offHost(t, t.TempDir())
	c, _ := serveFor(t, ctl.routes(), mayWrite)
	ctx := context.Background()
	trace := func(q api.TraceQuery) error {
		return c.Trace(ctx, q, func(*api.TraceEvent) error { return nil })
	}
	capture := func(q api.CaptureQuery) error { _, err := c.Capture(ctx, q); return err }
	for what, call := range map[string]struct{ got, want error }{
		"a trace of nobody":          {trace(api.TraceQuery{VM: "x"}), api.ErrUnknownVM},
		"a trace of no name":         {trace(api.TraceQuery{}), api.ErrUsage},
		"of odd events":              {trace(api.TraceQuery{VM: "x", Events: "seal,hold"}), api.ErrUsage},
		"of an odd flow":             {trace(api.TraceQuery{VM: "x", Flow: "1.2.3"}), api.ErrUsage},
		"a capture of nobody":        {capture(api.CaptureQuery{VM: "x"}), api.ErrUnknownVM},
		"on an odd side":             {capture(api.CaptureQuery{VM: "x", Side: "up"}), api.ErrUsage},
		"of an odd flow too":         {capture(api.CaptureQuery{VM: "x", Flow: ":0"}), api.ErrUsage},
		"of few bytes":               {capture(api.CaptureQuery{VM: "x", SnapLen: 1}), api.ErrUsage},
		"of more bytes than a frame": {capture(api.CaptureQuery{VM: "x", SnapLen: 1 << 30}), api.ErrUsage},
	} {
		if !errors.Is(call.got, call.want) {
			t.Errorf("%s: %v, want %v", what, call.got, call.want)
		}
	}
	if len(ctl.heard) != 0 {
		t.Errorf("%d listen", len(ctl.heard))
	}
}

// Four listen to a VM and a fifth may not until one has gone. All hear the same; the VM's end is every one's, and says why.
func TestListenersComeAndGo(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		c, _ := serveFor(t, r.c.routes(), mayWrite)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg sync.WaitGroup
		var mu sync.Mutex
		heard, ends := map[int]int{}, []error{}
		packets := func(i int) int {
			mu.Lock()
			defer mu.Unlock()
			return heard[i]
		}
		listen := func(ctx context.Context, i int) {
			begun := make(chan struct{})
			wg.Go(func() {
				err := c.Trace(ctx, api.TraceQuery{VM: "third"}, func(e *api.TraceEvent) error {
					if e.Event == api.TraceBegin {
						close(begun)
					}
					mu.Lock()
					defer mu.Unlock()
					heard[i] += e.Packets
					return nil
				})
				mu.Lock()
				defer mu.Unlock()
				ends = append(ends, err)
			})
			<-begun
		}
		one, leave := context.WithCancel(ctx)
		defer leave()
		listen(one, 0)
		for i := 1; i < maxListeningVM; i++ {
			listen(ctx, i)
		}
		if err := c.Trace(ctx, api.TraceQuery{VM: "third"}, nil); !errors.Is(err, api.ErrBusy) || !strings.Contains(err.Error(), "end one") {
			t.Errorf("one too many: %v", err)
		}
		r.send()
		for i := range maxListeningVM {
			r.eventually("all hear of ten packets", func() bool { return packets(i) == 10 })
		}
		leave()
		r.eventually("there is room again", func() bool {
			s, err := c.Capture(ctx, api.CaptureQuery{VM: "third", Side: api.SideGuest})
			if err == nil {
				defer s.Close()
				r.send()
				var k api.CaptureBlock
				if err := s.Next(&k); err != nil || k.Kind != api.BlockFrame || s.Head.Deeds[k.Deed] != "deliver" || len(k.Data) != int(k.Len) {
					t.Errorf("captured %+v, %v", k, err)
				}
			}
			return err == nil
		})
		if _, err := r.c.Detach(api.DetachRequest{Iface: r.net.B.Dev}); err != nil {
			t.Error(err)
		}
		wg.Wait()
		told := 0
		for _, err := range ends {
			if errors.Is(err, api.ErrEnded) && strings.Contains(err.Error(), "VM third was taken off") {
				told++
			}
		}
		if told != maxListeningVM-1 {
			t.Errorf("ended with %v", ends)
		}
		r.eventually("nobody is left", func() bool {
			r.c.mu.Lock()
			defer r.c.mu.Unlock()
			return len(r.c.heard) == 0
		})
		return nil
	})
}

// Whoever does not read loses, and the worker neither waits nor is told: the VM gets all of its frames.
func TestAListenerThatDoesNotReadHurtsNobody(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		c, _ := serveFor(t, r.c.routes(), mayWrite)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		s, err := c.Capture(ctx, api.CaptureQuery{VM: "third"})
		if err != nil {
			return err
		}
		defer s.Close()
		rounds := uint64(0)
		for r.lostOfAll() == 0 {
			r.send()
			rounds++
			r.eventually("the frames arrive", func() bool { return r.k.segments.Load() == 10*rounds })
		}
		var k api.CaptureBlock
		frames, lost := uint64(0), uint64(0)
		for frames+lost < 10*rounds {
			if err := s.Next(&k); err != nil {
				return err
			}
			if k.Kind == api.BlockLost {
				lost += k.Count
			} else {
				frames++
			}
		}
		if lost == 0 || frames == 0 || frames+lost != 10*rounds {
			t.Errorf("%d captured, %d lost of %d", frames, lost, 10*rounds)
		}
		return nil
	})
}

// lostOfAll is how many frames listeners did not hear of.
func (r *thirdRig) lostOfAll() (n uint64) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	for l := range r.c.heard {
		for _, p := range l.probes {
			n += p.Lost()
		}
	}
	return n
}
