package datapath

import (
	"errors"
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// MaxTapSegments bounds a superframe for a tap by the pieces that one descriptor chain or one sendmsg(2) takes.
const MaxTapSegments = 256

const (
	emptyWithin = 20 * time.Millisecond // a ring that stops is given this long to send what was posted
	emptyPoll   = 50 * time.Microsecond
)

// tapErr says in the worker's words why a tap did not take a frame.
func tapErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tap.ErrFull):
		return ErrFull
	case errors.Is(err, tap.ErrRefused):
		return ErrRefused
	case errors.Is(err, tap.ErrDown):
		return ErrLinkDown
	}
	return err
}

// PacketSocket is a *tap.Packet: a raw packet socket with a virtio_net_hdr on the VM's tap.
type PacketSocket interface {
	Send(frames []*virtio.Frame) (n int, err error)
	Refresh() error
	Close() error
}

// Ring is a *tap.Net: a transmit ring of /dev/vhost-net, whose descriptors point into the UMEM.
type Ring interface {
	Post(f *virtio.Frame, refs []uint64) error
	Kick() error
	Reap(free func(ref uint64)) int
	Pending() int // frames posted and not reaped
	Chunks() int  // refs that it holds
	ArmCall() bool
	AckCall()
	CallFD() int
	Err() error
	Unsent() int
	Close(free func(ref uint64)) error
}

// packetGuest is a VM's tap by a packet socket: Commit hands a burst over with one system call, and copies.
type packetGuest struct {
	pkt    PacketSocket
	nic    NIC
	n      int
	frames [tap.MaxBatch]*Frame
	batch  [tap.MaxBatch]*virtio.Frame
}

// NewPacketGuest returns the way into a VM by a packet socket on its tap, which it owns.
func NewPacketGuest(pkt PacketSocket, nic NIC) Guest { return &packetGuest{pkt: pkt, nic: nic} }

func (g *packetGuest) Begin(int) bool {
	g.n = 0
	return true
}

func (g *packetGuest) Put(f *Frame) error {
	if tap.TooSmall(&f.Hdr) {
		return ErrTooBig // for the kernel: it is cut
	}
	if g.n == len(g.batch) {
		return ErrBurst
	}
	g.frames[g.n], g.batch[g.n] = f, &f.Frame
	g.n++
	return nil
}

func (g *packetGuest) Commit() (int, error) {
	sent, err := g.pkt.Send(g.batch[:g.n])
	for _, f := range g.frames[:sent] {
		g.nic.FreeAll(f.Refs)
	}
	return sent, tapErr(err)
}

func (g *packetGuest) Walked() int           { return 0 }
func (g *packetGuest) Reap() int             { return 0 }
func (g *packetGuest) Arm(bool) (int, bool)  { return -1, false } // nothing tells of room: the worker tries again
func (g *packetGuest) Ack()                  {}
func (g *packetGuest) MaxFrame() int         { return 0 }
func (g *packetGuest) Close() (int, error)   { return 0, g.pkt.Close() }
func (g *packetGuest) Check(look bool) error { return checkPacket(g.pkt, look) }

func checkPacket(pkt PacketSocket, look bool) error {
	if !look {
		return nil
	}
	if err := pkt.Refresh(); err != nil && !errors.Is(err, tap.ErrDown) { // down may come up again
		return err
	}
	return nil
}

// ringGuest is a VM's tap by a /dev/vhost-net ring in front of a packet socket: a kernel thread copies out of the UMEM, and the
// chunks come back when it has.
type ringGuest struct {
	packetGuest // its socket is the ring's backend
	ring        Ring
	free        func(ref uint64) // nic.Free, bound once
	room        int              // chunks that the ring may hold
	puts        int

	copied [MaxCopy]byte // a frame beyond the room: the ring copies it once more, and holds no chunk
	copyOf virtio.Frame
	part   [1][]byte
	refs   []uint64 // of the frames copied in this burst
}

// MaxCopy is how long a frame may be that is copied into a ring, in bytes: any that comes in one piece. A ring that copies less than the frames
// of its uplink (tap.NetConfig) could not take a jumbo frame while it has little room, and its superframes were lost.
const MaxCopy = xsk.MostFrame

// littleRoom is a room in which superframes would wait for one another.
const littleRoom = 64

// NewRingGuest returns the way into a VM by a ring, which it owns, as it owns the packet socket behind it.
func NewRingGuest(ring Ring, pkt PacketSocket, nic NIC) Guest {
	return &ringGuest{packetGuest: packetGuest{pkt: pkt, nic: nic}, ring: ring, free: nic.Free}
}

func (g *ringGuest) Begin(room int) bool {
	g.puts, g.room, g.refs = 0, room, g.refs[:0]
	g.ring.Reap(g.free)
	return true
}

func (g *ringGuest) Put(f *Frame) error {
	if tap.TooSmall(&f.Hdr) {
		return ErrTooBig
	}
	if len(f.Refs) > 0 && g.ring.Chunks()+len(f.Refs) > g.room {
		return g.putCopy(f)
	}
	if err := g.ring.Post(&f.Frame, f.Refs); err != nil {
		return tapErr(err)
	}
	g.puts++
	return nil
}

// putCopy takes a frame beyond the chunks that the ring may hold. A single one is copied. A superframe waits, unless the ring may
// hold little, because other rings have the chunks, and may keep them for ever: then its packets are copied.
func (g *ringGuest) putCopy(f *Frame) error {
	switch {
	case f.Hdr.GSOType != 0 && (len(f.Refs) > g.room || g.room < littleRoom):
		return ErrTooBig
	case f.Hdr.GSOType != 0 || f.Len > len(g.copied):
		return ErrFull
	}
	n := 0
	for _, b := range f.Frags {
		n += copy(g.copied[n:], b)
	}
	g.part[0] = g.copied[:n]
	g.copyOf = virtio.Frame{Hdr: f.Hdr, Frags: g.part[:], Len: n}
	if err := g.ring.Post(&g.copyOf, nil); err != nil {
		return tapErr(err)
	}
	g.refs = append(g.refs, f.Refs...)
	g.puts++
	return nil
}

func (g *ringGuest) Commit() (int, error) {
	for _, r := range g.refs {
		g.free(r)
	}
	return g.puts, tapErr(g.ring.Kick())
}

func (g *ringGuest) Reap() int {
	g.ring.Reap(g.free)
	return g.ring.Chunks()
}

// Arm asks for a call when the worker must know that the ring has moved: frames wait for room, or many chunks are in it.
func (g *ringGuest) Arm(hungry bool) (int, bool) {
	if g.ring.Pending() == 0 || (!hungry && g.ring.Chunks() < g.room/2) {
		return -1, false
	}
	return g.ring.CallFD(), g.ring.ArmCall()
}

func (g *ringGuest) Ack() { g.ring.AckCall() }

func (g *ringGuest) Check(look bool) error {
	if err := g.ring.Err(); err != nil {
		return err
	}
	return checkPacket(g.pkt, look)
}

func (g *ringGuest) Close() (unsent int, err error) {
	for end := time.Now().Add(emptyWithin); g.ring.Pending() > 0 && g.ring.Err() == nil && time.Now().Before(end); {
		if g.ring.Reap(g.free) == 0 {
			time.Sleep(emptyPoll)
		}
	}
	err = g.ring.Close(g.free)
	return g.ring.Unsent(), errors.Join(err, g.pkt.Close())
}
