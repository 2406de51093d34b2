package netnstest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Transfer is how a bulk TCP transfer went.
type Transfer struct {
	Bytes    int64
	Sent     [sha256.Size]byte // of what the sender wrote
	Received [sha256.Size]byte // of what the receiver read
	Elapsed  time.Duration
}

// Bulk sends n bytes of reproducible noise by TCP from one side to an address of the other (IPv6 if v6), and fails the
// test when an error occurs, the time is over, or the hashes differ.
func Bulk(t testing.TB, from, to *Side, n int64, v6 bool, timeout time.Duration) Transfer {
	t.Helper()
	addr := to.IPv4.Addr()
	if v6 {
		addr = to.IPv6.Addr()
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	sink := to.Sink(t, netip.AddrPortFrom(addr, 0))
	var r Transfer
	start := time.Now()
	sent, err := from.Send(ctx, sink.Addr, n)
	if err != nil {
		t.Fatalf("bulk: send: %v", err)
	}
	r.Sent = sent
	r.Received, r.Bytes, err = sink.Wait(ctx)
	r.Elapsed = time.Since(start)
	if err != nil {
		t.Fatalf("bulk: receive: %v", err)
	}
	if r.Bytes != n || r.Sent != r.Received {
		t.Fatalf("bulk: sent %d bytes with hash %x, received %d with %x", n, r.Sent, r.Bytes, r.Received)
	}
	return r
}

// Send connects from this side, writes n bytes of noise, and returns their hash when the other end has closed too.
func (s *Side) Send(ctx context.Context, to netip.AddrPort, n int64) (sum [sha256.Size]byte, err error) {
	var conn *net.TCPConn
	err = s.NS.Do(func() error {
		// One address, so the dialer opens the socket on this goroutine, and so in this namespace.
		var d net.Dialer
		d.SetMultipathTCP(false)
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		return sum, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	h := sha256.New()
	if err := writeNoise(conn, h, n); err != nil {
		return sum, errors.Join(err, ctx.Err())
	}
	if err := conn.CloseWrite(); err != nil {
		return sum, err
	}
	// The end of the other direction says that all of ours was read.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return sum, errors.Join(err, ctx.Err())
	}
	h.Sum(sum[:0])
	return sum, nil
}

func writeNoise(w io.Writer, h hash.Hash, n int64) error {
	src := rand.NewChaCha8([32]byte{0: 1})
	buf := make([]byte, 256<<10)
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		src.Read(b) // never fails
		h.Write(b)
		if _, err := w.Write(b); err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

// Sink is a TCP server that hashes what one connection sends.
type Sink struct {
	Addr netip.AddrPort
	ln   net.Listener
	done chan sinkResult
}

type sinkResult struct {
	sum [sha256.Size]byte
	n   int64
	err error
}

// Sink listens on an address of this side (port 0: any) and takes one connection. It ends with the test.
func (s *Side) Sink(t testing.TB, addr netip.AddrPort) *Sink {
	t.Helper()
	k, err := s.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// Listen is Sink for any goroutine; the caller closes it.
func (s *Side) Listen(addr netip.AddrPort) (*Sink, error) {
	k := &Sink{done: make(chan sinkResult, 1)}
	err := s.NS.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		k.ln, err = lc.Listen(context.Background(), "tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	k.Addr = k.ln.Addr().(*net.TCPAddr).AddrPort()
	go k.serve()
	return k, nil
}

// Close ends the listening, and with it a Wait for a connection that never came.
func (k *Sink) Close() { k.ln.Close() }

func (k *Sink) serve() {
	conn, err := k.ln.Accept()
	if err != nil {
		k.done <- sinkResult{err: err}
		return
	}
	defer conn.Close()
	h := sha256.New()
	var r sinkResult
	r.n, r.err = io.CopyBuffer(h, struct{ io.Reader }{conn}, make([]byte, 256<<10))
	h.Sum(r.sum[:0])
	k.done <- r
}

// Wait returns the hash and the number of bytes once the connection has ended.
func (k *Sink) Wait(ctx context.Context) (sum [sha256.Size]byte, n int64, err error) {
	select {
	case r := <-k.done:
		return r.sum, r.n, r.err
	case <-ctx.Done():
		k.ln.Close()
		return sum, 0, fmt.Errorf("sink: %w", ctx.Err())
	}
}
