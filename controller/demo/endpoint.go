package demo

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is the TCP side of a child: it can send and receive streams, so data goes either way. Its operations are
//
//	listen    start to listen; the reply names the address
//	receive   take Flows connections from now on, hash what they bring
//	send      open Flows connections and write, Bytes on each or until "finish"
//	finish    end what "send" began and report
//	complete  report when "send" has written everything
//	received  wait for the end of what "receive" takes and report
//	abandon   break off what "send" began, or what "receive" takes
//
// "receive" comes before the other side's "send".
type endpoint struct {
	ln       *net.TCPListener
	pattern  []byte
	received atomic.Int64

	in  *transfer
	out *transfer
}

// transfer is the connections of one send or receive.
type transfer struct {
	wg    sync.WaitGroup
	stop  atomic.Bool // sending until told to stop
	mu    sync.Mutex
	conns []*net.TCPConn
	done  []stream
	errs  []error
}

var errNoTransfer = errors.New("no transfer is under way")

func (e *endpoint) do(q *request) (*reply, error) {
	switch q.Op {
	case "listen":
		return e.listen(q.Address)
	case "receive":
		return nil, e.receive(q.Flows, q.Sum)
	case "send":
		return nil, e.send(q)
	case "finish", "complete":
		t := e.out
		e.out = nil
		if t != nil && q.Op == "finish" {
			t.stop.Store(true)
		}
		return t.report()
	case "abandon":
		return nil, e.abandon()
	case "received":
		t := e.in
		e.in = nil
		return t.report()
	}
	return nil, fmt.Errorf("%s: %w", q.Op, errOp)
}

// knows says whether an operation is one of the streams'.
func (e *endpoint) knows(op string) bool {
	return slices.Contains([]string{"listen", "receive", "send", "finish", "complete", "received", "abandon"}, op)
}

func (e *endpoint) listen(address string) (*reply, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, err
	}
	e.ln = ln.(*net.TCPListener)
	return &reply{Address: ln.Addr().String()}, nil
}

func (e *endpoint) receive(flows int, sum string) error {
	if e.ln == nil {
		return errNoTransfer
	}
	if _, err := newSum(sum); err != nil {
		return err
	}
	t := &transfer{}
	e.in = t
	t.wg.Go(func() {
		for range flows {
			conn, err := e.ln.AcceptTCP()
			if err != nil {
				t.fail(err)
				return
			}
			t.add(conn)
			t.wg.Go(func() { t.finish(e.read(conn, sum, shareOf(readLen, flows))) })
		}
	})
	return nil
}

// readLen is one read of a few connections. Half a megabyte is one system call per eight superframes.
const readLen = 512 << 10

// shareOf is what each of many connections has of the memory that eight of them have, whose own is full: what waits in a socket has to be
// sent before a round ends, and buffers that are not in the caches would be what is measured.
func shareOf(full, flows int) int { return max(64<<10, min(full, 8*full/flows)) }

func (e *endpoint) read(conn *net.TCPConn, sum string, length int) (stream, error) {
	defer conn.Close()
	h, err := newSum(sum)
	if err != nil {
		return stream{}, err
	}
	buf := make([]byte, length)
	s := stream{Port: conn.RemoteAddr().(*net.TCPAddr).Port}
	for {
		n, err := conn.Read(buf)
		h.Write(buf[:n])
		s.Bytes += int64(n)
		e.received.Add(int64(n))
		if err == io.EOF {
			s.Sum = sumText(h)
			return s, nil
		}
		if err != nil {
			return s, fmt.Errorf("receive: %w", err)
		}
	}
}

func (e *endpoint) send(q *request) error {
	if e.pattern == nil {
		e.pattern = pattern(q.Seed)
	}
	t := &transfer{}
	e.out = t
	var start []func()
	for i := range q.Flows {
		tcp, err := dial(q.Address, q.Pace)
		if err != nil {
			return err
		}
		t.add(tcp)
		h, err := newSum(q.Sum)
		if err != nil {
			return err
		}
		if q.Flows > 8 {
			if err := tcp.SetWriteBuffer(shareOf(sendBuffer, q.Flows)); err != nil {
				return fmt.Errorf("send buffer: %w", err)
			}
		}
		// Each flow begins elsewhere in the pattern: bytes that ended up in the wrong flow differ.
		pos := i * (patternLen / 16) % patternLen
		start = append(start, func() { t.finish(e.write(t, tcp, h, pos, q.Bytes)) })
	}
	for _, f := range start { // a handshake among streams that fill every queue would wait for its own loss
		t.wg.Go(f)
	}
	return nil
}

// sendBuffer is what a few connections have each, as of socketBuffers. The kernel doubles what is asked for.
const sendBuffer = 2 << 20

// connectTimeout bounds the handshake: two losses of a SYN fit.
const connectTimeout = 5 * time.Second

// usualCongestion is Linux' own choice, and so what nearly every sender does. The machine's may be another one: BBR (version 1) takes no notice of
// what is lost in a queue that is shorter than what it wants to have on its way, and loses a seventh of all it sends in front of any VM that is
// slower than it.
const usualCongestion = "cubic"

// dial connects, with the usual congestion control where this kernel has it. pace is how many bytes a second are sent at most, 0 without a bound; TCP
// keeps to it by a timer of its own.
func dial(address string, pace int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: connectTimeout, Control: func(_, _ string, c syscall.RawConn) error {
		var paced error
		err := c.Control(func(fd uintptr) {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, usualCongestion) // snapshot tells what it is
			if pace > 0 {
				paced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, pace)
			}
		})
		return errors.Join(err, paced)
	}}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn.(*net.TCPConn), nil
}

func (e *endpoint) write(t *transfer, conn *net.TCPConn, h hash.Hash, pos int, limit int64) (stream, error) {
	s := stream{Port: conn.LocalAddr().(*net.TCPAddr).Port}
	for !t.stop.Load() && (limit == 0 || s.Bytes < limit) {
		chunk := e.pattern[pos:][:writeLen]
		if limit > 0 {
			chunk = chunk[:min(int64(writeLen), limit-s.Bytes)]
		}
		n, err := conn.Write(chunk)
		h.Write(chunk[:n])
		s.Bytes += int64(n)
		pos = (pos + n) % patternLen
		if err != nil {
			return s, fmt.Errorf("send: %w", err)
		}
	}
	s.Sum = sumText(h)
	if err := conn.CloseWrite(); err != nil {
		return s, fmt.Errorf("send: close: %w", err)
	}
	// The other side closes once it has read everything, or the connection breaks; either ends this read.
	_, err := io.Copy(io.Discard, conn)
	return s, err
}

// sending is what the connections that it sends on have sent again, by TCP_INFO, and their congestion control.
func (e *endpoint) sending() (retransmits uint64, congestion string) {
	if e.out == nil {
		return 0, ""
	}
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	for _, c := range e.out.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				retransmits += uint64(info.Total_retrans)
			}
			congestion, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
	}
	return retransmits, congestion
}

func (e *endpoint) close() {
	if e.ln != nil {
		e.ln.Close()
	}
	e.in.abort()
	e.out.abort()
}

func (t *transfer) add(c *net.TCPConn) {
	t.mu.Lock()
	t.conns = append(t.conns, c)
	t.mu.Unlock()
}

func (t *transfer) finish(s stream, err error) {
	if err != nil {
		t.fail(err)
		return
	}
	t.mu.Lock()
	t.done = append(t.done, s)
	t.mu.Unlock()
}

func (t *transfer) fail(err error) {
	t.mu.Lock()
	t.errs = append(t.errs, err)
	t.mu.Unlock()
}

// report waits for the end of every connection.
func (t *transfer) report() (*reply, error) {
	if t == nil {
		return nil, errNoTransfer
	}
	t.wg.Wait()
	defer t.abort()
	slices.SortFunc(t.done, func(a, b stream) int { return a.Port - b.Port })
	return &reply{Streams: t.done}, errors.Join(t.errs...)
}

// abandon breaks off what goes out and what comes in. Connections that wait to be accepted are of the same transfer, and go with it.
func (e *endpoint) abandon() error {
	in := e.in
	e.out.abandon()
	e.out, e.in = nil, nil
	if in == nil {
		return nil
	}
	// The goroutine that accepts may wait for one that never became whole.
	if err := e.ln.SetDeadline(time.Now().Add(acceptRest)); err != nil {
		return err
	}
	for {
		c, err := e.ln.AcceptTCP()
		if err != nil {
			break // the deadline
		}
		c.Close()
	}
	in.abandon()
	return e.ln.SetDeadline(time.Time{})
}

// acceptRest is how long connections of a transfer that is broken off are waited for.
const acceptRest = 50 * time.Millisecond

// abandon breaks the connections off and waits for those that had them. What lies in the sockets is thrown away.
func (t *transfer) abandon() {
	if t == nil {
		return
	}
	t.mu.Lock()
	for _, c := range t.conns {
		_ = c.SetLinger(0) // a reset instead of the rest of the data
	}
	t.mu.Unlock()
	t.abort()
	t.wg.Wait()
}

func (t *transfer) abort() {
	if t == nil {
		return
	}
	t.stop.Store(true)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		c.Close()
	}
}
