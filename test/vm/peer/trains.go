package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/stream"
)

const (
	numberLen   = 8        // bytes: a datagram begins with its number, in big endian; what follows is the stream of that seed
	shorter     = 100      // bytes that the last datagram of a train lacks
	trainsAhead = 4        // trains that may be on their way
	trainsRoom  = 8 << 20  // bytes: the receiver's socket buffer
	oneRead     = 64 << 10 // bytes: as much as the kernel hands out at once
)

// errNotSent is a datagram that nobody sent, or not so, or not so often.
var errNotSent = errors.New("not what was sent")

// ListenTrains opens a UDP port with UDP_GRO: a read brings as many datagrams of one size as the kernel has together. It needs CAP_NET_ADMIN
// for its buffer.
func ListenTrains(address string) (*net.UDPConn, error) {
	var config net.ListenConfig
	config.Control = func(_, _ string, raw syscall.RawConn) error {
		return setOptions(raw, [3]int{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, trainsRoom}, [3]int{unix.IPPROTO_UDP, unix.UDP_GRO, 1})
	}
	c, err := config.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// setOptions sets socket options, each a level, a name and a value.
func setOptions(raw syscall.RawConn, options ...[3]int) (err error) {
	failed := raw.Control(func(fd uintptr) {
		for _, o := range options {
			if e := unix.SetsockoptInt(int(fd), o[0], o[1], o[2]); e != nil {
				err = errors.Join(err, os.NewSyscallError("setsockopt", e))
			}
		}
	})
	return errors.Join(err, failed)
}

// fillDatagram writes the datagram of a number: nobody else's bytes are the same.
func fillDatagram(b []byte, number int) {
	binary.BigEndian.PutUint64(b, uint64(number))
	// A read of a stream fails only at its end, and this one is as long as the rest.
	_, _ = io.ReadFull(stream.New(uint64(number), int64(len(b)-numberLen)), b[numberLen:])
}

// SendTrains sends the stream to a socket of ReceiveTrains, connected as c: each train by one call (UDP_SEGMENT), and never more than a
// few above what the receiver says has come. Lost datagrams are the receiver's to tell.
func SendTrains(c *net.UDPConn, t control.Trains) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("trains: %w", err)
	}
	segment := func(size int) error { return setOptions(raw, [3]int{unix.IPPROTO_UDP, unix.UDP_SEGMENT, size}) }
	if err := segment(t.Size); err != nil {
		return fmt.Errorf("trains: %w", err)
	}
	whole := true
	send := func(b []byte) error {
		if whole {
			_, err := c.Write(b)
			if !errors.Is(err, unix.EIO) {
				return err
			}
			// Before Linux 6.11 no train is cut for a device that sums nothing (net/ipv4/udp.c, udp_send_skb).
			whole = false
			if err := segment(0); err != nil {
				return err
			}
		}
		for len(b) > 0 {
			n := min(t.Size, len(b))
			if _, err := c.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	}
	b, arrived := make([]byte, t.Train*t.Size), make([]byte, numberLen)
	for sent, taken := 0, 0; sent < t.Count; {
		for i := range t.Train {
			fillDatagram(b[i*t.Size:(i+1)*t.Size], sent+i)
		}
		if err := send(b[:len(b)-shorter]); err != nil {
			return fmt.Errorf("trains: after %d datagrams: %w", sent, err)
		}
		sent += t.Train
		for sent-taken > trainsAhead*t.Train && sent < t.Count {
			if err := c.SetReadDeadline(time.Now().Add(t.Timeout)); err != nil {
				return fmt.Errorf("trains: %w", err)
			}
			if _, err := io.ReadFull(c, arrived); err != nil {
				return fmt.Errorf("trains: %d datagrams sent, the receiver last told of %d: %w", sent, taken, err)
			}
			taken = max(taken, int(binary.BigEndian.Uint64(arrived)))
		}
	}
	return nil
}

// ReceiveTrains takes a stream until all of it is there, or nothing came for its timeout, and compares every byte. To the sender it tells
// how many datagrams came, once for each train's worth. An error is also in the result, which tells how far it went.
func ReceiveTrains(c *net.UDPConn, t control.Trains) (*control.Reception, error) {
	r := &control.Reception{}
	err := receiveTrains(c, t, r)
	if err != nil {
		err = fmt.Errorf("trains: after %d datagrams: %w", r.Datagrams, err)
		r.Error = err.Error()
	}
	return r, err
}

func receiveTrains(c *net.UDPConn, t control.Trains, r *control.Reception) error {
	buf, oob, want, arrived := make([]byte, oneRead), make([]byte, unix.CmsgSpace(4)), make([]byte, t.Size), make([]byte, numberLen)
	seen := make([]bool, t.Count)
	for highest := -1; r.Datagrams < t.Count; {
		if err := c.SetReadDeadline(time.Now().Add(t.Timeout)); err != nil {
			return err
		}
		n, o, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return err
		}
		size, err := trainSize(oob[:o], n)
		if err != nil {
			return err
		}
		before := r.Datagrams
		for at := 0; at < n; at += size {
			b := buf[at:min(n, at+size)]
			number := t.Count
			if len(b) > numberLen {
				number = int(min(binary.BigEndian.Uint64(b), uint64(t.Count)))
			}
			if number == t.Count || seen[number] {
				return fmt.Errorf("%d bytes with number %d: %w", len(b), number, errNotSent)
			}
			length := t.Size
			if (number+1)%t.Train == 0 {
				length -= shorter
			}
			if fillDatagram(want[:t.Size], number); !bytes.Equal(b, want[:length]) {
				return fmt.Errorf("%d bytes with number %d: %w", len(b), number, errNotSent)
			}
			if number < highest {
				r.Late++
			}
			seen[number], highest = true, max(highest, number)
			r.Datagrams++
		}
		r.Calls++
		r.Most = max(r.Most, r.Datagrams-before)
		if r.Datagrams/t.Train > before/t.Train {
			binary.BigEndian.PutUint64(arrived, uint64(r.Datagrams))
			if _, err := c.WriteToUDPAddrPort(arrived, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// trainSize is the size of the datagrams of a read of n bytes: what the control message UDP_GRO says, or all of it.
func trainSize(oob []byte, n int) (int, error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, err
	}
	for _, m := range list {
		if m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
			if size := int(int32(binary.NativeEndian.Uint32(m.Data))); size > 0 {
				return size, nil
			}
		}
	}
	return n, nil
}
