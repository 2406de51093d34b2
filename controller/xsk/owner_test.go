package xsk

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// An owner of a socket, in a process of its own that will be killed. The keeper of the socket's parts is the test.

const (
	ownerEnv    = "RSCCTL_TEST_XSK_OWNER"
	killBurst   = 32  // frames an owner takes at once
	killHeld    = 100 // chunks an owner keeps in hand
	killAhead   = 100 // frames on their way at most, in each direction: fewer than a ring holds
	killRecords = 1 << 20
	killKeeper  = 3 // the descriptor of an owner's connection to the keeper
)

// record is memory that the owners and the keeper share: what the owners took and sent, and how much of that has arrived.
type record struct {
	fd      int
	taken   *uint64  // entries of log
	sent    *uint64  // frames published
	arrived *uint64  // of them, as the keeper saw
	log     []uint64 // numbers of the frames taken; badFrame when one was not what had been sent
}

const badFrame = 1 << 63

func openRecord(t *testing.T, fd int) *record {
	t.Helper()
	if fd < 0 {
		var err error
		if fd, err = newMemory("record", 8*(3+killRecords)); err != nil {
			t.Fatal(err)
		}
	}
	mem, err := unix.Mmap(fd, 0, 8*(3+killRecords), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Munmap(mem)
		unix.Close(fd)
	})
	w := wordsOf(mem)
	return &record{fd, &w[0], &w[1], &w[2], w[3:]}
}

// Payloads of numbered frames are shorter than these.
const (
	killShort = 1200
	killJumbo = 8900 // mostly in several chunks
)

// longest is one of them: what a socket of a configuration is to take.
func (c *Config) longest() uint64 {
	if c.Frames > 0 {
		return killJumbo
	}
	return killShort
}

// numbered is a frame that no other number makes.
func numbered(number, longest uint64, to [6]byte) []byte {
	f := segment(0, 10+int(number*7%longest))
	copy(f, to[:])
	binary.BigEndian.PutUint64(f[54:], number)
	for i := range f[62:] {
		f[62+i] = byte(number) + byte(i)
	}
	return f
}

// numberOf returns badFrame unless f is a numbered frame, bit for bit.
func numberOf(f []byte, longest uint64, to [6]byte) uint64 {
	if len(f) < 62 {
		return badFrame
	}
	if n := binary.BigEndian.Uint64(f[54:]); n < badFrame && bytes.Equal(f, numbered(n, longest, to)) {
		return n
	}
	return badFrame
}

// passFDs sends a message and descriptors over the connection of owner and keeper.
func passFDs(conn int, msg []byte, fds ...int) error {
	return unix.Sendmsg(conn, append(msg, '\n'), unix.UnixRights(fds...), nil, 0)
}

func takeFDs(conn int) (msg []byte, fds []int, err error) {
	msg, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := unix.Recvmsg(conn, msg, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	blocks, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(blocks) == 0 {
		return msg[:n], nil, err
	}
	fds, err = unix.ParseUnixRights(&blocks[0])
	return msg[:n], fds, err
}

// TestOwnsASocketUntilKilled is run by TestAKilledOwnersFramesGoToItsHeir, in processes of its own.
func TestOwnsASocketUntilKilled(t *testing.T) {
	if os.Getenv(ownerEnv) == "" {
		return
	}
	msg, fds, err := takeFDs(killKeeper)
	var c Config
	if err = errors.Join(err, json.Unmarshal(msg, &c)); err != nil {
		t.Fatal(err)
	}
	var s *Socket
	if len(fds) == 1 {
		if s, err = Open(c); err == nil {
			fill(s) // frames may come as soon as the keeper has it
			p := s.Parts()
			err = passFDs(killKeeper, nil, p.Socket, p.Umem, p.Owners)
		}
	} else {
		s, err = Adopt(c, Parts{fds[1], fds[2], fds[3]})
	}
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, openRecord(t, fds[0]), c.longest())
}

// serve takes and sends frames until the keeper is gone.
func serve(t *testing.T, s *Socket, r *record, longest uint64) {
	var d [killBurst]Desc
	var hand []uint64 // as a flow table would hold them
	next := atomic.LoadUint64(r.sent)
	s.Refill()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		n := s.Recv(d[:])
		taken := atomic.LoadUint64(r.taken)
		for _, d := range d[:n] {
			f, _ := s.Received(d)
			r.log[taken] = numberOf(f, longest, vmMAC)
			taken++
			hand = append(hand, d.Addr)
		}
		atomic.StoreUint64(r.taken, taken)
		if over := len(hand) - killHeld; over > 0 {
			s.FreeAll(hand[:over])
			hand = hand[:copy(hand, hand[over:])]
		}
		s.Refill()
		for next < atomic.LoadUint64(r.arrived)+killAhead && s.TxRoom() > 2 {
			f := numbered(next, longest, peerMAC)
			buf, d, ok := s.AllocTx()
			if len(f) > len(buf) {
				s.Free(d.Addr)
				buf, d, ok = s.AllocLarge()
			}
			if !ok || !s.Send(d, copy(buf, f)) {
				t.Fatal("room, but not for a frame")
			}
			next++
			n++
		}
		s.Publish()
		atomic.StoreUint64(r.sent, next)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			continue
		}
		fds := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLIN}, {Fd: killKeeper, Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 1); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if fds[1].Revents&unix.POLLHUP != 0 {
			return
		}
	}
}
