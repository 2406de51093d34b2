package fdstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"
)

// noteHead is in front of each of a note's two slots: a number that grows, the length in bytes, and the CRC of both and of the content. All
// little endian: 8, 4 and 4 bytes.
const noteHead = 16

// Note is memory whose content is replaced as a whole: a process that is killed while it writes leaves what was there before. It is
// used by one goroutine; readers are processes that come later.
type Note struct {
	fd   int
	room int // bytes of content
	next uint64
	buf  []byte
}

// NewNote makes a note for contents of up to room bytes. What it does not hold takes no memory.
func NewNote(name string, room int) (*Note, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("note: %w", err)
	}
	if err := unix.Ftruncate(fd, 2*int64(noteHead+room)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("note: %w", err)
	}
	return &Note{fd: fd, room: room, next: 1}, nil
}

// FD is the note's descriptor, for Store.Put. Borrowed, valid until Close.
func (n *Note) FD() int { return n.fd }

// Write replaces the content. Error: ErrTooBig, and the content stays.
func (n *Note) Write(b []byte) error {
	if len(b) > n.room {
		return fmt.Errorf("note: %d bytes: %w (%d)", len(b), ErrTooBig, n.room)
	}
	n.buf = binary.LittleEndian.AppendUint64(n.buf[:0], n.next)
	n.buf = binary.LittleEndian.AppendUint32(n.buf, uint32(len(b)))
	n.buf = binary.LittleEndian.AppendUint32(n.buf, noteSum(n.buf, b))
	n.buf = append(n.buf, b...)
	at := int64(n.next%2) * int64(noteHead+n.room)
	if _, err := unix.Pwrite(n.fd, n.buf, at); err != nil {
		return fmt.Errorf("note: %w", err)
	}
	n.next++
	return nil
}

func noteSum(head, content []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(head[:12]), crc32.IEEETable, content)
}

// Close frees what this process has of it. A second one does nothing, and a Write after it fails.
func (n *Note) Close() error {
	if n.fd < 0 {
		return nil
	}
	fd := n.fd
	n.fd = -1
	return unix.Close(fd)
}

// ReadNote returns the last content that was written whole. The descriptor stays the caller's. Error: ErrDamaged.
func ReadNote(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("note: %w", err)
	}
	slot := st.Size / 2
	if st.Mode&unix.S_IFMT != unix.S_IFREG || slot < noteHead || slot > 1<<30 {
		return nil, fmt.Errorf("note: of %d bytes: %w", st.Size, ErrDamaged)
	}
	var best []byte
	var newest uint64
	for _, at := range []int64{0, slot} {
		number, content := readSlot(fd, at, slot)
		if content != nil && number > newest {
			newest, best = number, content
		}
	}
	if best == nil {
		return nil, fmt.Errorf("note: nothing whole in it: %w", ErrDamaged)
	}
	return best, nil
}

// readSlot returns a slot's content, nil when it is not whole.
func readSlot(fd int, at, size int64) (number uint64, content []byte) {
	head := make([]byte, noteHead)
	if n, err := unix.Pread(fd, head, at); err != nil || n != noteHead {
		return 0, nil
	}
	length := int64(binary.LittleEndian.Uint32(head[8:]))
	if length > size-noteHead {
		return 0, nil
	}
	content = make([]byte, length)
	if n, err := unix.Pread(fd, content, at+noteHead); err != nil || int64(n) != length || noteSum(head, content) != binary.LittleEndian.Uint32(head[12:]) {
		return 0, nil
	}
	return binary.LittleEndian.Uint64(head), content
}
