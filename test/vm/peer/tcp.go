// Package peer is what either end of a test does on the network: send and receive a stream by TCP, answer and send UDP
// datagrams, send ICMP echo requests. The guest's program and the harness use the same code, so they agree on every byte.
//
// Sockets are made on the calling goroutine's thread: called inside netns.NS.Do, they belong to that namespace.
package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/stream"
)

// bufferSize is how much is read or written at once: a few superframes.
const bufferSize = 256 << 10

// Send writes n bytes of the stream of seed to c, says that there are no more, and waits until the other side has closed
// too: then everything was taken there, and Duration says how long that took. An error is also in the result, which tells
// how far it went.
func Send(c *net.TCPConn, seed uint64, n int64) (*control.Transfer, error) {
	start := time.Now()
	sum := sha256.New()
	src := stream.New(seed, n)
	buf := make([]byte, bufferSize)
	t := &control.Transfer{}
	var err error
	for err == nil && t.Bytes < n {
		m, _ := src.Read(buf)
		var wrote int
		wrote, err = c.Write(buf[:m])
		sum.Write(buf[:wrote])
		t.Bytes += int64(wrote)
	}
	if err == nil {
		err = c.CloseWrite()
	}
	if err == nil {
		// The receiver sends nothing: the only good end is its FIN.
		var m int
		if m, err = c.Read(buf[:1]); m > 0 {
			err = errors.New("the receiver sent data")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	return finish(t, sum, start, err, "send")
}

// Receive reads c to its end, and with count leaves out the hash. An error is also in the result, which tells how far it
// went.
func Receive(c *net.TCPConn, count bool) (*control.Transfer, error) {
	start := time.Now()
	sum := sha256.New()
	if count {
		sum = nil
	}
	t := &control.Transfer{}
	buf := make([]byte, bufferSize)
	var err error
	for {
		var n int
		n, err = c.Read(buf)
		if sum != nil {
			sum.Write(buf[:n])
		}
		t.Bytes += int64(n)
		if err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return finish(t, sum, start, err, "receive")
}

func finish(t *control.Transfer, sum hash.Hash, start time.Time, err error, what string) (*control.Transfer, error) {
	t.Duration = time.Since(start)
	if sum != nil {
		t.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	if err != nil {
		err = fmt.Errorf("%s: after %d bytes: %w", what, t.Bytes, err)
		t.Error = err.Error()
	}
	return t, err
}

// Listen opens a port of plain TCP: Go's own default is MPTCP, where the kernel has it.
func Listen(address string) (*net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// Dial connects to "ADDRESS:PORT", an address without a name.
func Dial(to string, timeout time.Duration) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", to, timeout)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Accept takes one connection before the deadline.
func Accept(l *net.TCPListener, deadline time.Time) (*net.TCPConn, error) {
	if err := l.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return l.AcceptTCP()
}
