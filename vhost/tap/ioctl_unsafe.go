package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of /dev/vhost-net (include/uapi/linux/vhost.h), type 0xAF. The numbers are those of amd64 and arm64.
const (
	vhostGetFeatures  = 0x8008af00 // *uint64
	vhostSetFeatures  = 0x4008af00 // *uint64
	vhostSetOwner     = 0x0000af01
	vhostSetMemTable  = 0x4008af03 // *memTable
	vhostSetVringNum  = 0x4008af10 // *vringState
	vhostSetVringAddr = 0x4028af11 // *vringAddr
	vhostSetVringBase = 0x4008af12 // *vringState
	vhostGetVringBase = 0xc008af12 // *vringState
	vhostSetVringKick = 0x4008af20 // *vringFile
	vhostSetVringCall = 0x4008af21 // *vringFile
	vhostSetVringErr  = 0x4008af22 // *vringFile
	vhostSetBackend   = 0x4008af30 // *vringFile, VHOST_NET_SET_BACKEND
)

// vringState is struct vhost_vring_state.
type vringState struct{ index, num uint32 }

// vringFile is struct vhost_vring_file. fd -1 unbinds.
type vringFile struct {
	index uint32
	fd    int32
}

// vringAddr is struct vhost_vring_addr. Addresses are of our own process.
type vringAddr struct {
	index, flags           uint32
	desc, used, avail, log uint64
}

// memRegion is struct vhost_memory_region.
type memRegion struct{ gpa, size, uva, flags uint64 }

// memTable is struct vhost_memory with room for the regions we have.
type memTable struct {
	count, padding uint32
	regions        [2]memRegion
}

// address is where b lies in our process, and, because the memory table maps every region to itself, its guest physical address.
// b must be memory that the garbage collector does not own, or stay referenced while the kernel may look.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func ioctlU64(fd int, request uintptr, v *uint64) error { return ioctl(fd, request, unsafe.Pointer(v)) }
func ioctlState(fd int, request uintptr, v *vringState) error {
	return ioctl(fd, request, unsafe.Pointer(v))
}
func ioctlFile(fd int, request uintptr, v *vringFile) error {
	return ioctl(fd, request, unsafe.Pointer(v))
}
func ioctlAddr(fd int, v *vringAddr) error { return ioctl(fd, vhostSetVringAddr, unsafe.Pointer(v)) }
func ioctlMem(fd int, v *memTable) error   { return ioctl(fd, vhostSetMemTable, unsafe.Pointer(v)) }

// eventSignal adds one to an eventfd, eventDrain takes its value. Neither blocks nor allocates: the unix package's Read and Write
// return an error by interface.
func eventSignal(fd int) {
	one := uint64(1)
	// It fails only when the counter is full, and then the other side has its signal.
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
}

func eventDrain(fd int) (n uint64) {
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&n)), 8)
	return n
}

// inside says whether b lies in mem as a whole.
func inside(b, mem []byte) bool {
	start, base := address(b), address(mem)
	return start >= base && start-base+uint64(len(b)) <= uint64(len(mem))
}
