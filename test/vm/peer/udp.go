package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/stream"
)

// Echo sends every datagram back to where it came from, until c is closed.
func Echo(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		// An answer that cannot be sent is one the other side misses: it counts.
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// UDP makes round trips to an echo server. Every datagram has bytes of its own, so that an old answer is not taken for a
// new one.
func UDP(p control.Probe) (*control.ProbeResult, error) {
	c, err := net.Dial("udp", p.To)
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	return probe(p, func(_ int, payload []byte, deadline time.Time) error {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := c.Write(payload); err != nil {
			return err
		}
		for {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			if bytes.Equal(buf[:n], payload) {
				return nil
			}
		}
	})
}

// probe runs the round trips one after the other. One that timed out is not an error: the result counts it as unanswered.
func probe(p control.Probe, trip func(i int, payload []byte, deadline time.Time) error) (*control.ProbeResult, error) {
	r := &control.ProbeResult{}
	payload := make([]byte, p.Size)
	for i := range p.Count {
		// A read of a stream fails only at its end, and this one is as long as the buffer.
		_, _ = io.ReadFull(stream.New(uint64(i)<<32|uint64(p.Size), int64(p.Size)), payload)
		start := time.Now()
		err := trip(i, payload, start.Add(p.Timeout))
		r.Sent++
		switch {
		case err == nil:
			r.Answered++
			r.RTT = append(r.RTT, time.Since(start))
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return r, fmt.Errorf("probe %s: %w", p.To, err)
		}
	}
	return r, nil
}
