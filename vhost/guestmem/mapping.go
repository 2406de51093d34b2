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
	fd     int    // the file, of our own: whoever goes on with the guest maps it again
	delta  int    // of the region in whole
	id     identity
	sealed bool
	budget *Budget
	refs   atomic.Int64
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

// newMapping maps the file's blocks that hold the region, for a table of so many. Guest memory stays out of core dumps: it is not ours to show.
func newMapping(fd int, id identity, f fileFacts, b *Budget, regions int) (*mapping, error) {
	start := id.offset &^ (f.block - 1)
	length := id.offset - start + id.size
	if f.block != uint64(os.Getpagesize()) {
		length = (length + f.block - 1) &^ (f.block - 1) // a hugetlbfs file's size is a multiple too: not past its end
	}
	if err := b.take(length, regions); err != nil {
		return nil, err
	}
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		b.giveBack(length)
		return nil, fmt.Errorf("guest memory: keep the file: %w", err)
	}
	mem, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		_ = unix.Close(kept)
		b.giveBack(length)
		return nil, fmt.Errorf("guest memory: mmap: %w", err)
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP) // advice; hugetlbfs may refuse it
	m := &mapping{whole: mem, fd: kept, delta: int(id.offset - start), id: id, sealed: f.sealed, budget: b}
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
	m.budget.giveBack(uint64(len(m.whole)))
	if err := unix.Close(m.fd); err != nil {
		return fmt.Errorf("guest memory: close: %w", err)
	}
	return nil
}
