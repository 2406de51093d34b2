package controller

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// Somebody removes the control socket's file again and again: each time it is made anew and kept for a process after a crash, nothing of the
// ones before is left, and who heard something by the first hears on.
func TestAControlSocketThatIsRemovedIsMadeAnew(t *testing.T) {
	store := newTestStore(t)
	withThird(t, func(r *thirdRig) error {
		r.c.opt.Store = store.Store
		if err := r.c.survive(1); err != nil {
			return err
		}
		remembered := make(chan struct{})
		go func() {
			defer close(remembered)
			r.c.guarded(r.c.remember)
		}()
		for done := false; !done; store.catchUp(t) { // it tells more than a socket has room for
			select {
			case <-remembered:
				done = true
			default:
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		serve := func(l *unixsock.Listener) {
			wg.Go(func() {
				if err := r.c.serve(ctx, l); err != nil {
					t.Error(err)
				}
			})
		}
		serve(r.c.listener)
		client := api.NewClient(r.c.opt.Socket)
		defer client.Close()
		heard, begun := make(chan int, 100), make(chan struct{})
		wg.Go(func() {
			_ = client.Trace(ctx, api.TraceQuery{VM: "third"}, func(e *api.TraceEvent) error {
				if e.Event == api.TraceBegin {
					close(begun)
				}
				heard <- e.Packets
				return nil
			})
		})
		<-begun
		hears := func() {
			r.send()
			for all := 0; all < 10; {
				select {
				case n := <-heard:
					all += n
				case <-time.After(10 * time.Second):
					t.Fatalf("of ten packets %d are heard of", all)
				}
			}
		}
		hears()
		var first, last use
		for i := range 8 {
			if err := os.Remove(r.c.opt.Socket); err != nil {
				return err
			}
			r.c.listenAgain(t.Context(), serve)
			one := api.NewClient(r.c.opt.Socket)
			if _, err := one.Status(ctx, ""); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
			one.Close()
			store.catchUp(t)
			if last = inUse(t); i == 0 { // one is left, by which somebody hears
				first = last
			}
		}
		ended, end := context.WithCancel(ctx)
		end()
		if err := os.Rename(r.c.opt.Socket, r.c.opt.Socket+".kept"); err != nil {
			return err
		}
		r.c.listenAgain(ended, serve)
		if _, err := os.Lstat(r.c.opt.Socket); err == nil {
			t.Error("what ends makes its socket anew")
		}
		if err := os.Rename(r.c.opt.Socket+".kept", r.c.opt.Socket); err != nil {
			return err
		}
		r.eventually("nothing of those before is left", func() bool {
			last = inUse(t)
			return last.goroutines <= first.goroutines && last.descriptors <= first.descriptors
		})
		hears()

		kept := 0
		for name, fd := range store.files(t) {
			if strings.HasPrefix(name, "control") {
				kept++
				l, err := unixsock.Adopt(controlConfig(r.c.opt.Socket, -1), r.c.listener.ID(), fd)
				if err != nil {
					return err
				}
				if !sameSocket(t, l, r.c.listener) {
					t.Errorf("%s, which is kept, is not the socket of now", name)
				}
				_ = l.Leave()
				continue
			}
			_ = unix.Close(fd)
		}
		if err := r.c.survivor.note.Close(); err != nil {
			return err
		}
		r.c.survivor = nil // nobody reads any more what shutdown would tell
		if kept != 1 {
			t.Errorf("%d control sockets are kept", kept)
		}
		return nil
	})
}

// sameSocket tells whether two listeners are of one socket.
func sameSocket(t *testing.T, a, b *unixsock.Listener) bool {
	t.Helper()
	var is [2]unix.Stat_t
	for i, l := range []*unixsock.Listener{a, b} {
		fd, err := l.Dup()
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Fstat(fd, &is[i])
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
	}
	return is[0].Ino == is[1].Ino
}
