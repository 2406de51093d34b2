package guestmem

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mapping is one mmap, shared by the tables that count themselves in refs.
type mapping struct {
	whole  []byte // from the page that the region begins in
	delta  int    // of the region in whole
	id     identity
	sealed bool
	refs   atomic.Int64
}

// identity names the bytes of a region whatever descriptor they came by.
type identity struct {
	dev, ino     uint64
	offset, size uint64
}

// fileFacts is what mapping a file needs to know besides its identity.
type fileFacts struct {
	block  uint64 // bytes that offset and length of a mapping must be multiples of
	sealed bool   // F_SEAL_SHRINK is set
}

// inspect validates the file behind r. A regular file is asked for, because only such a file has the length that it
// says, and one on FUSE is refused: a page fault in it would wait for a process of the peer's, on a worker that serves
// other guests too.
func inspect(r Region) (identity, fileFacts, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.FD, &st); err != nil {
		return identity{}, fileFacts{}, fmt.Errorf("guest memory: fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return identity{}, fileFacts{}, ErrNotMemory
	}
	if st.Size < 0 || uint64(st.Size) < r.Offset+r.Size {
		return identity{}, fileFacts{}, ErrFileTooShort
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.FD, &fs); err != nil {
		return identity{}, fileFacts{}, fmt.Errorf("guest memory: fstatfs: %w", err)
	}
	f := fileFacts{block: uint64(os.Getpagesize())}
	switch int64(fs.Type) {
	case unix.FUSE_SUPER_MAGIC:
		return identity{}, fileFacts{}, ErrNotMemory
	case unix.HUGETLBFS_MAGIC: // here a mapping begins and ends on a huge page, or mmap and munmap refuse it
		f.block = uint64(fs.Bsize)
	}
	if seals, err := unix.FcntlInt(uintptr(r.FD), unix.F_GET_SEALS, 0); err == nil {
		f.sealed = seals&unix.F_SEAL_SHRINK != 0 // an error means a file that knows no seals
	}
	return identity{dev: uint64(st.Dev), ino: st.Ino, offset: r.Offset, size: r.Size}, f, nil
}

// memoryLimit is the most bytes that the regions of one guest may have: four times the memory of the machine, because
// what is plugged into a guest later may be promised beyond it, and on a small machine 64 GiB.
func memoryLimit() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("guest memory: sysinfo: %w", err)
	}
	const least = 64 << 30
	return max(4*uint64(info.Totalram)*uint64(info.Unit), least), nil
}

// newMapping maps the file's blocks that hold the region. Guest memory stays out of core dumps: it is not ours to show.
func newMapping(fd int, id identity, f fileFacts) (*mapping, error) {
	start := id.offset &^ (f.block - 1)
	length := id.offset - start + id.size
	if f.block != uint64(os.Getpagesize()) {
		length = (length + f.block - 1) &^ (f.block - 1) // a hugetlbfs file's size is a multiple too: not past its end
	}
	mem, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("guest memory: mmap: %w", err)
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP) // advice; hugetlbfs may refuse it
	m := &mapping{whole: mem, delta: int(id.offset - start), id: id, sealed: f.sealed}
	m.refs.Store(1)
	return m, nil
}

// region is the region's own bytes, capacity cut so that no reslicing reaches the rest of the page.
func (m *mapping) region() []byte {
	end := m.delta + int(m.id.size)
	return m.whole[m.delta:end:end]
}

func (m *mapping) retain() {
	if m != nil {
		m.refs.Add(1)
	}
}

func (m *mapping) release() error {
	if m == nil || m.refs.Add(-1) > 0 {
		return nil
	}
	if err := unix.Munmap(m.whole); err != nil {
		return fmt.Errorf("guest memory: munmap: %w", err)
	}
	return nil
}
