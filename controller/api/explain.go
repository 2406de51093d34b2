package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// maxSocketPath is sizeof(sun_path) less the closing zero (unix(7)).
const maxSocketPath = 107

// explain turns a failed round trip into an error that says what to do. The context's own end stays recognisable.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// url.Error repeats method and URL, which mean nothing on a Unix socket.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	switch {
	case len(c.path) > maxSocketPath:
		return fmt.Errorf("control socket %s: path has %d bytes: use one of at most %d", c.path, len(c.path), maxSocketPath)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w at %s: start one with 'rscctl run', or name its socket with --socket or RSCCTL_SOCKET",
			ErrNoController, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control socket %s: %w: %s", c.path, ErrPermission, permissionRemedy(c.path))
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("control socket %s: the controller accepts nobody: see its log", c.path)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("control socket %s: no answer in %v: see the controller's log", c.path, RequestTimeout)
	}
	return fmt.Errorf("control socket %s: %w: see the controller's log", c.path, err)
}

// permissionRemedy names the group that may connect, when that is not root's.
func permissionRemedy(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "run as root"
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return "run as root"
	}
	name := strconv.Itoa(int(st.Gid))
	if g, err := user.LookupGroupId(name); err == nil {
		name = g.Name
	}
	return "run as root or as a member of group " + name
}
