package guestmem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Errors about the file behind a region.
var (
	ErrNotMemory    = errors.New("guest memory: file is not shareable memory")
	ErrFileTooShort = errors.New("guest memory: file is shorter than the region")
	ErrFileSystem   = errors.New("guest memory: a page fault there may wait for somebody else; give the guest memory from a memfd, " +
		"from tmpfs (/dev/shm) or from huge pages")
)

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

// memoryFS says whether guest memory may lie on that file system, by the magic number of statfs(2).
//
// A worker copies into guest memory on behalf of many guests: a page fault that waits holds all of them, and with the next
// garbage collection the whole process, because a thread that waits in a fault does not stop for it. So the question is
// who has to act before a fault there is answered, and only where that is this kernel alone the answer is yes:
//
//   - tmpfs holds memfd_create(2) and POSIX shared memory as well as files in /dev/shm: QEMU's memory-backend-memfd,
//     memory-backend-shm and memory-backend-file on /dev/shm (Kata), libvirt's <source type='memfd'/>, Cloud Hypervisor's
//     shared=on, crosvm, DPDK's --in-memory --no-huge. A fault takes a page, or reads one back from the host's own swap.
//     tmpfs cannot be frozen (FIFREEZE wants an operation that it does not have), a userfaultfd of the peer's holds faults
//     of the peer's address space and not of ours, and a hole being punched there delays a fault until it is punched.
//   - hugetlbfs: QEMU's memory-backend-memfd with hugetlb=on and memory-backend-file on /dev/hugepages, Cloud Hypervisor's
//     hugepages=on, DPDK's hugepages. A fault takes a page of the pool, or raises SIGBUS when the pool is empty.
//
// Not among them, each for one who would have to act first: disk file systems (frozen by FIFREEZE, full, or on a disk that
// does not answer; libvirt's <source type='file'/> without a path puts memory there), NFS and its like (a server), FUSE (a
// process of the peer's), overlayfs whatever lies beneath (statfs shows the overlay, and the layers may be any of these).
// memfd_secret(2) and dma-buf are sent by no front-end; a DAX device is no regular file, so its length is not to be had.
func memoryFS(magic int64) bool {
	return magic == unix.TMPFS_MAGIC || magic == unix.HUGETLBFS_MAGIC
}

// inspect validates the file behind r. A regular file is asked for, because only such a file has the length that it says.
// Of other file systems than memory's own, o.AnyFile allows all but FUSE, where nothing but a peer's process ever answers.
//
// The calls here, and close(2) of the descriptor afterwards, ask the file's own system, and one that does not answer holds
// whoever calls: that is the control goroutine of the peer's own port, which serves nobody else.
func inspect(r Region, o Options) (identity, fileFacts, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.FD, &st); err != nil {
		return identity{}, fileFacts{}, fmt.Errorf("guest memory: fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return identity{}, fileFacts{}, ErrNotMemory
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.FD, &fs); err != nil {
		return identity{}, fileFacts{}, fmt.Errorf("guest memory: fstatfs: %w", err)
	}
	if magic := int64(fs.Type); !memoryFS(magic) && (!o.AnyFile || magic == unix.FUSE_SUPER_MAGIC) {
		return identity{}, fileFacts{}, fmt.Errorf("file system of type %#x: %w", uint32(magic), ErrFileSystem)
	}
	if st.Size < 0 || uint64(st.Size) < r.Offset+r.Size {
		return identity{}, fileFacts{}, ErrFileTooShort
	}
	f := fileFacts{block: uint64(os.Getpagesize())}
	if int64(fs.Type) == unix.HUGETLBFS_MAGIC { // here a mapping begins and ends on a huge page, or mmap and munmap refuse it
		f.block = uint64(fs.Bsize)
	}
	if seals, err := unix.FcntlInt(uintptr(r.FD), unix.F_GET_SEALS, 0); err == nil {
		f.sealed = seals&unix.F_SEAL_SHRINK != 0 // an error means a file that knows no seals
	}
	return identity{dev: uint64(st.Dev), ino: st.Ino, offset: r.Offset, size: r.Size}, f, nil
}
