package vhost_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// all is what a Linux guest accepts.
const all = vhost.DefaultFeatures &^ (1 << virtio.FRSCExt)

const patience = 10 * time.Second

// portLog records what a port tells its owner.
type portLog struct {
	mu      sync.Mutex
	events  []string
	lines   []string
	stopped chan error
}

func (l *portLog) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *portLog) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *portLog) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.lines, "\n"), part)
}

// count tells how many lines hold part.
func (l *portLog) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func (l *portLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.events...)
}

// take returns the events so far and forgets them and the lines.
func (l *portLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.events
	l.events, l.lines = nil, nil
	return events
}

// newPort makes a port on a fresh socket; edit may change its configuration.
func newPort(t testing.TB, edit func(*vhost.Config)) (*vhost.Port, string, *portLog) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vhost") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log := &portLog{stopped: make(chan error, 1024)}
	cfg := vhost.Config{
		Name: "vm", Socket: filepath.Join(dir, "s"), UID: -1, GID: -1, MaxPairs: 4, Logf: log.logf,
		Hooks: vhost.Hooks{
			Started:     func(*vhost.Port) { log.add("started") },
			BeforePause: func(*vhost.Port) { log.add("before pause") },
			BeforeStop:  func(*vhost.Port) { log.add("before stop") },
			Stopped: func(_ *vhost.Port, reason error) {
				log.add("stopped")
				log.stopped <- reason
			},
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	p, err := vhost.NewPort(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, cfg.Socket, log
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// piece is a buffer of the guest's memory.
type piece struct {
	gpa uint64
	mem []byte
}

// guest is a network driver over a Frontend.
type guest struct {
	*user.Frontend
	t      testing.TB
	chains map[*user.Ring]map[uint64][]piece
	token  uint64
}

func newGuest(t testing.TB, socket string, edit func(*user.FrontendConfig)) *guest {
	t.Helper()
	cfg := user.FrontendConfig{Socket: socket, Features: all, RingSize: 64, Memory: 8 << 20}
	if edit != nil {
		edit(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, err := user.OpenFrontend(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &guest{Frontend: f, t: t, chains: map[*user.Ring]map[uint64][]piece{}}
}

func (g *guest) start() *guest {
	g.t.Helper()
	if err := g.Start(); err != nil {
		g.t.Fatal(err)
	}
	return g
}

// post offers one chain of buffers of those sizes; readable ones hold data.
func (g *guest) post(r *user.Ring, writable bool, sizes ...int) []piece {
	g.t.Helper()
	var pieces []piece
	var bufs []vring.Buffer
	for _, n := range sizes {
		gpa, mem, err := g.Alloc(n, 1)
		if err != nil {
			g.t.Fatal(err)
		}
		for i := range mem {
			mem[i] = 0xEE
		}
		pieces = append(pieces, piece{gpa, mem})
		bufs = append(bufs, vring.Buffer{Addr: gpa, Len: uint32(n), Writable: writable})
	}
	g.postPieces(r, pieces, bufs)
	return pieces
}

func (g *guest) postPieces(r *user.Ring, pieces []piece, bufs []vring.Buffer) {
	g.t.Helper()
	g.token++
	if err := r.Driver.Add(bufs, g.token); err != nil {
		g.t.Fatal(err)
	}
	if g.chains[r] == nil {
		g.chains[r] = map[uint64][]piece{}
	}
	g.chains[r][g.token] = pieces
}

// kick publishes what was posted and kicks if the device wants it.
func (g *guest) kick(r *user.Ring) bool {
	k := r.Driver.Publish()
	if k {
		r.Kick()
	}
	return k
}

// send posts a frame with its header on a transmit ring, cut into parts of those sizes; the last takes the rest.
func (g *guest) send(r *user.Ring, h virtio.NetHdr, frame []byte, sizes ...int) {
	g.t.Helper()
	b := make([]byte, virtio.HdrSize)
	h.Encode(b)
	b = append(b[:g.Features().HdrLen()], frame...)
	used := 0
	for _, n := range sizes {
		used += n
	}
	if used < len(b) {
		sizes = append(sizes, len(b)-used)
	}
	pieces := g.post(r, false, sizes...)
	for _, p := range pieces {
		b = b[copy(p.mem, b):]
	}
}

// recv takes one frame off a receive ring and holds the device to its duties (virtio 1.2, 5.1.6.4).
func (g *guest) recv(r *user.Ring) (h virtio.NetHdr, frame []byte, ok bool) {
	g.t.Helper()
	want, known := 1, false
	for i := 0; i < want; i++ {
		token, n, more := r.Driver.Used()
		if !more {
			if err := r.Driver.Err(); err != nil {
				g.t.Fatal(err)
			}
			if i > 0 {
				g.t.Fatalf("%d of %d buffers visible", i, want)
			}
			return h, nil, false
		}
		pieces := g.chains[r][token]
		delete(g.chains[r], token)
		space := 0
		for _, p := range pieces {
			space += len(p.mem)
			k := min(int(n), len(p.mem))
			frame = append(frame, p.mem[:k]...)
			if bytes.ContainsFunc(p.mem[k:], func(r rune) bool { return r != 0xFFFD }) { // 0xEE is no UTF-8
				g.t.Error("bytes written behind the reported length")
			}
			n -= uint32(k)
		}
		if n != 0 {
			g.t.Fatal("more bytes reported than the chain holds")
		}
		if !known && len(frame) < g.Features().HdrLen() {
			want++ // the header goes on in the next chain, and num_buffers with it
		} else if !known {
			known = true
			if err := h.Decode(frame[:g.Features().HdrLen()]); err != nil {
				g.t.Fatal(err)
			}
			if g.Features().HdrLen() == virtio.HdrSize {
				want = int(h.NumBuffers)
			}
			if err := virtio.CheckRxHdr(&h, g.Features()); err != nil {
				g.t.Errorf("header %+v: %v", h, err)
			}
			if want < 1 || want > 1 && !g.Features().Has(virtio.FMrgRxbuf) {
				g.t.Fatalf("num_buffers %d", want)
			}
		}
		if i < want-1 && bytes.HasSuffix(pieces[len(pieces)-1].mem, []byte{0xEE, 0xEE}) {
			g.t.Error("a buffer that is not the last was not filled")
		}
	}
	return h, frame[g.Features().HdrLen():], true
}

// frame makes n bytes that are no header and differ by seed; none is 0xEE.
func makeFrame(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		if b[i] = byte(x >> 24); b[i] == 0xEE {
			b[i] = 0
		}
	}
	return b
}

func cut(b []byte, size int) (frags [][]byte) {
	for len(b) > size {
		frags = append(frags, b[:size])
		b = b[size:]
	}
	return append(frags, b)
}

func plain(b []byte) *virtio.Frame { return &virtio.Frame{Frags: [][]byte{b}, Len: len(b)} }

// put delivers frames in one burst.
func put(t testing.TB, q *vhost.RxQueue, frames ...*virtio.Frame) (err error) {
	t.Helper()
	if !q.Begin() {
		return vhost.ErrNotRunning
	}
	defer func() {
		if bad := q.Commit(); err == nil {
			err = bad
		}
	}()
	for _, f := range frames {
		if err := q.Put(f); err != nil {
			return err
		}
	}
	return nil
}

// arm is what a worker does that finds no buffers, and then does not sleep.
func arm(q *vhost.RxQueue) (available bool) {
	defer q.Forget(nobody)
	return q.Await(nobody)
}

var nobody = &vhost.Waiter{Wake: func() {}}

// poll takes what a guest sent.
func poll(t testing.TB, q *vhost.TxQueue, budget int) (frames [][]byte) {
	t.Helper()
	_, _, err := q.Poll(budget, func(f *vhost.TxFrame) vhost.Next {
		f.Whole()
		frames = append(frames, bytes.Clone(f.Data))
		return vhost.TakeOn
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return frames
}
