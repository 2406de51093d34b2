package controller

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
)

// frameRoom is what the frames of an interface lie in.
type frameRoom struct {
	chunk int // bytes of a UMEM chunk
	frame int // bytes of a buffer for frames that no chunk holds; 0: there are none
}

// roomFor is the room for an interface's MTU. What no chunk holds comes in several, if the kernel can do that: several says so.
func roomFor(f *netdev.Facts, several func() error) (frameRoom, error) {
	if chunk := xsk.ChunkFor(f.MTU, xsk.Grain(f.Driver)); chunk != 0 {
		return frameRoom{chunk: chunk}, nil
	}
	if err := several(); err != nil {
		return frameRoom{}, tooLarge(f, err)
	}
	frame := xsk.FrameFor(f.MTU)
	if frame == 0 {
		most := xsk.FrameMTU(xsk.MostFrame)
		return frameRoom{}, fmt.Errorf("%w: %d, and %d is the largest that works: lower the interface's MTU ('ip link set %s mtu %d')", ErrMTU, f.MTU, most, f.Name, most)
	}
	return frameRoom{chunk: xsk.LargeChunk, frame: frame}, nil
}

// tooLarge refuses an MTU whose frames no chunk holds, where they cannot come in several for the reason why.
func tooLarge(f *netdev.Facts, why error) error {
	most := xsk.MaxMTU(xsk.LargeChunk, xsk.Grain(f.Driver))
	return fmt.Errorf("%w: %d, and %d is the largest that works here: lower the interface's MTU ('ip link set %s mtu %d'): %w", ErrMTU, f.MTU, most, f.Name, most, why)
}

// multiBuffer tells whether this kernel brings frames in several chunks.
func multiBuffer() error {
	if err := bpf.CheckFrags(); err != nil {
		return err
	}
	return xsk.CheckMultiBuffer()
}

// lacksJumbo says of a device that was to get frames in several chunks, and refused, that its MTU is the reason.
func (u *uplink) lacksJumbo(f *netdev.Facts, err error) error {
	if u.rings.Frames == 0 || !errors.Is(err, bpf.ErrUnsupported) && !errors.Is(err, xsk.ErrUnsupported) {
		return err
	}
	return tooLarge(f, err)
}

// jumboRings is how many times as long the rings of frames that come are where one takes several entries.
const jumboRings = 2

// inFrames are RX and fill ring in frames, all of them the longest: what XDP counts, which holds every VM to its share of the one, and
// notices a worker that hangs before the other runs dry.
func (r ringSizes) inFrames(chunk int) (rx, fill int) {
	if r.Frames == 0 {
		return r.Rx, r.Fill
	}
	pieces := xsk.Pieces(r.FrameSize, chunk)
	return r.Rx / pieces, r.Fill / pieces
}

// room is what an uplink's frames lie in.
func (u *uplink) room() frameRoom { return frameRoom{u.chunk, u.rings.FrameSize} }

// with is the room for the frames of both.
func (r frameRoom) with(other frameRoom) frameRoom {
	return frameRoom{max(r.chunk, other.chunk), max(r.frame, other.frame)}
}

// takes is nil when the frames of a member of the bond fit in here, too.
func (r frameRoom) takes(member frameRoom, bond string) error {
	switch {
	case member.frame > r.frame:
		return fmt.Errorf("its frames want buffers of %d bytes, and those of %s have %d: detach the VMs and attach them again", member.frame, bond, max(r.frame, r.chunk))
	case member.chunk > r.chunk:
		return fmt.Errorf("its frames want chunks of %d bytes, and those of %s have %d: detach the VMs and attach them again", member.chunk, bond, r.chunk)
	}
	return nil
}

// maxMTU is the largest MTU whose frames fit, with that driver.
func (r frameRoom) maxMTU(driver string) int {
	if r.frame > 0 {
		return xsk.FrameMTU(r.frame)
	}
	return xsk.MaxMTU(r.chunk, xsk.Grain(driver))
}

// perChunk is how much memory there is for each chunk.
func (r frameRoom) perChunk() int { return r.chunk + r.frame/chunksPerFrame }
