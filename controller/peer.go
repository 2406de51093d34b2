package controller

import (
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// peerAllowed is true for root, the controller's own user, and members of the socket's group, which group tells (false: the file is
// no longer ours). The file's mode says the same; this holds also where an operator opened the mode by mistake. All is asked of
// the connection: a process ID may be somebody else's by the time it is looked up.
func peerAllowed(c *net.UnixConn, group func() (gid uint32, ok bool)) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	allowed := false
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
			allowed = true
			return
		}
		gid, ok := group()
		if !ok {
			return
		}
		groups, err := peerGroups(int(fd))
		allowed = cred.Gid == gid || err == nil && slices.Contains(groups, gid)
	})
	return allowed
}
