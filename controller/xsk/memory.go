package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Names of the memory files, as /proc/PID/maps shows them.
const (
	umemName   = "rscctl-umem"
	ownersName = "rscctl-owners"
)

// seals keep a memory file as long as it is: whoever touched what another had cut off would die of it.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func (c *Config) umemSize() int   { return c.chunksSize() + c.Frames*c.FrameSize }
func (c *Config) chunksSize() int { return c.Chunks * c.ChunkSize }
func (c *Config) ownersSize() int { return (noteWords + c.Chunks) * 8 }

// newMemory makes a memory file of size bytes, all of them there.
func newMemory(name string, size int) (fd int, err error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL) // some hosts insist on it
	if errors.Is(err, unix.EINVAL) {                             // before Linux 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); { // a signal of the Go runtime's is enough; what was there by then is taken back
		err = unix.Fallocate(fd, 0, 0, int64(size))
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fileID is the identity of a memory file.
type fileID struct{ dev, ino uint64 }

func fileOf(fd int) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, explain("UMEM memory", err)
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

func mapWhole(fd, size int) ([]byte, error) {
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}

// mapMemory maps both memory files and returns the note in front of the owners.
func (s *Socket) mapMemory(c Config) (note, error) {
	mem, err := mapWhole(s.parts.Umem, c.umemSize())
	if err != nil {
		return nil, explain("UMEM memory", err)
	}
	s.mapped = append(s.mapped, mem)
	own, err := mapWhole(s.parts.Owners, c.ownersSize())
	if err != nil {
		return nil, explain("memory of the chunks' owners", err)
	}
	s.mapped = append(s.mapped, own)
	words := wordsOf(own)
	s.umem = newUmem(mem, c.ChunkSize, c.FrameSize, owners(words[noteWords:]))
	s.umem.free, s.umem.large = nil, buffers{} // until Begin
	return note(words[:noteWords]), nil
}

// note tells in front of the owners' words what they belong to. The kernel does not tell which queue a socket is bound to, or
// which memory it uses.
type note []uint64

// Words of a note.
const (
	noteMagic = iota
	noteSocket
	noteUmem
	noteQueue
	noteChunks
	noteRxTx
	noteFillComp
	noteWakeup
	noteWords
)

// magic ends with the number of the layout: of the note, the words, and what the words say.
const magic = 0x7273_6378_736b_0001 // "rscxsk", 1

var noteWhat = [noteWords]string{
	"layout of the owners", "socket", "UMEM", "interface or queue", "number or size of chunks", "size of the RX or TX ring",
	"size of the fill or completion ring", "way of waking the kernel, or number or size of buffers",
}

// noteOf is the note for a configuration and descriptors.
func noteOf(c Config, p Parts) (n [noteWords]uint64, err error) {
	cookie, err := unix.GetsockoptUint64(p.Socket, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return n, explain("socket's cookie", err)
	}
	umem, err := fileOf(p.Umem)
	if err != nil {
		return n, err
	}
	pair := func(a, b int) uint64 { return uint64(a)<<32 | uint64(uint32(b)) }
	n[noteMagic], n[noteSocket], n[noteUmem] = magic, cookie, umem.ino
	n[noteQueue], n[noteChunks] = pair(c.Ifindex, c.Queue), pair(c.Chunks, c.ChunkSize)
	n[noteRxTx], n[noteFillComp] = pair(c.RxSize, c.TxSize), pair(c.FillSize, c.CompSize)
	n[noteWakeup] = pair(c.Frames, c.FrameSize) << 1 // 0 where there are none, as it was before there could be
	if c.NeedWakeup {
		n[noteWakeup] |= 1
	}
	return n, nil
}

func (n note) write(c Config, p Parts) error {
	want, err := noteOf(c, p)
	copy(n, want[:])
	return err
}

// check compares the note with what it should be. Error: ErrParts.
func (n note) check(c Config, p Parts) error {
	want, err := noteOf(c, p)
	if err != nil {
		return err
	}
	for i, w := range want {
		if n[i] != w {
			return fmt.Errorf("another %s (%#x, not %#x): %w", noteWhat[i], n[i], w, ErrParts)
		}
	}
	return nil
}
