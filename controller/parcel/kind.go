package parcel

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what a descriptor is, as far as the kernel tells.
type Kind string

// The kinds that a controller hands on.
const (
	XDPSocket    Kind = "xdp socket"
	PacketSocket Kind = "packet socket"
	Listener     Kind = "listening unix socket"
	Stream       Kind = "unix socket"
	TCPListener  Kind = "listening tcp socket"
	Memory       Kind = "memory file" // a regular file, memfd or other
	Folder       Kind = "folder"
	Event        Kind = "eventfd"
	BPFMap       Kind = "bpf map"
	BPFLink      Kind = "bpf link"
	BPFProgram   Kind = "bpf program"
	Other        Kind = "something else"
)

// anonymous are the names of descriptors without a file, by what /proc calls them.
var anonymous = map[string]Kind{
	"anon_inode:[eventfd]": Event, "anon_inode:bpf-map": BPFMap, "anon_inode:bpf-prog": BPFProgram,
	"anon_inode:bpf_link": BPFLink, "anon_inode:bpf-link": BPFLink,
}

// KindOf asks the kernel what a descriptor is.
func KindOf(fd int) Kind {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return Other
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return Memory
	case unix.S_IFDIR:
		return Folder
	case unix.S_IFSOCK:
		return socketKind(fd)
	}
	link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if k, ok := anonymous[strings.TrimSpace(link)]; ok {
		return k
	}
	return Other
}

func socketKind(fd int) Kind {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return Other
	}
	listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case domain == unix.AF_XDP:
		return XDPSocket
	case domain == unix.AF_PACKET:
		return PacketSocket
	case domain == unix.AF_UNIX && listens == 1:
		return Listener
	case domain == unix.AF_UNIX:
		return Stream
	case listens == 1 && (domain == unix.AF_INET || domain == unix.AF_INET6):
		return TCPListener
	}
	return Other
}
