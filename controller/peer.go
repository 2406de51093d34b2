package controller

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// access is what a peer of the control socket may do.
type access int

const (
	mayNothing access = iota
	mayRead           // look at everything
	mayWrite          // and change it
)

// peer is who is at the other end of a connection to the control socket, as the kernel knows it from the moment of connect(2).
type peer struct {
	uid    uint32
	pid    int32 // it may be somebody else's by the time it is looked up
	access access
}

// askedBy is who sent a request; the zero value where nobody knows.
func askedBy(r *http.Request) peer {
	p, _ := r.Context().Value(peerKey{}).(peer)
	return p
}

// peerOf finds out who a peer is, and what he may do: root and the controller's own user everything, members of the socket's group look, and
// with groupWrites change things as well. group tells the group (false: the file is no longer ours). The file's mode says whom the kernel
// lets connect; this holds also where an operator opened the mode by mistake. All is asked of the connection.
func peerOf(c *net.UnixConn, group func() (gid uint32, ok bool), groupWrites bool) (p peer) {
	raw, err := c.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		p.uid, p.pid = cred.Uid, cred.Pid
		if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
			p.access = mayWrite
			return
		}
		gid, ok := group()
		if !ok {
			return
		}
		groups, err := peerGroups(int(fd))
		if cred.Gid != gid && (err != nil || !slices.Contains(groups, gid)) {
			return
		}
		p.access = mayRead
		if groupWrites {
			p.access = mayWrite
		}
	})
	return p
}

// groupID is the number of a group that is named, or its number.
func groupID(group string) (int, error) {
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("group %q is not known", group)
	}
	return strconv.Atoi(g.Gid)
}
