package vhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSocketPath = 107 // sun_path without its final 0
	backlog       = 16
	dialTimeout   = time.Second
)

// CheckSocket says, without changing anything, whether NewPort would accept
// the configuration's socket. The errors are ErrConfig, ErrPathTooLong,
// ErrNoFolder, ErrNotSocket and, unless we dial, ErrSocketInUse.
func CheckSocket(cfg Config) error {
	_, err := inspectSocket(cfg)
	return err
}

// inspectSocket reports whether a socket file nobody listens on is in the way.
func inspectSocket(cfg Config) (stale bool, err error) {
	path := cfg.Socket
	switch {
	case path == "" || path[0] == '@': // that would be an abstract name
		return false, fmt.Errorf("socket %q: not a path: %w", path, ErrConfig)
	case len(path) > maxSocketPath:
		return false, fmt.Errorf("socket %s: %w (%d)", path, ErrPathTooLong, len(path))
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("socket %s: %w", path, err)
		}
		return false, fmt.Errorf("socket %s: %w", path, ErrNoFolder)
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a front-end that we dial may come later
	}
	if err != nil {
		return false, fmt.Errorf("socket %s: %w", path, err)
	}
	if cfg.Connect && st.Mode()&fs.ModeSymlink != 0 {
		if st, err = os.Stat(path); err != nil {
			return false, nil // it may point somewhere later
		}
	}
	if st.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("socket %s: %w", path, ErrNotSocket)
	}
	if cfg.Connect {
		return false, nil
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		_ = c.Close()
		return false, fmt.Errorf("socket %s: %w", path, ErrSocketInUse)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return true, nil
	}
	return false, fmt.Errorf("socket %s: %w: %w", path, ErrSocketInUse, err) // EAGAIN: its queue is full
}

// listener is a listening Unix socket and the file that it made.
type listener struct {
	*net.UnixListener
	path     string
	dev, ino uint64
}

// listen makes the socket file. Mode and owner are set before anybody can
// connect: a socket that is bound but does not listen refuses.
func listen(cfg Config) (_ *listener, err error) {
	stale, err := inspectSocket(cfg)
	if err != nil {
		return nil, err
	}
	if stale {
		if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("socket %s: %w", cfg.Socket, err)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), cfg.Socket)
	defer file.Close() // FileListener works on a copy
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: cfg.Socket}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = ErrSocketInUse
		}
		return nil, fmt.Errorf("socket %s: %w", cfg.Socket, err)
	}
	l := &listener{path: cfg.Socket}
	defer func() {
		if err != nil {
			_ = os.Remove(cfg.Socket)
		}
	}()
	mode := cfg.Mode
	if mode == 0 {
		mode = 0o600
	}
	if err := os.Chmod(cfg.Socket, mode.Perm()); err != nil {
		return nil, fmt.Errorf("socket %s: mode: %w", cfg.Socket, err)
	}
	if cfg.UID >= 0 || cfg.GID >= 0 {
		if err := os.Lchown(cfg.Socket, cfg.UID, cfg.GID); err != nil {
			return nil, fmt.Errorf("socket %s: owner: %w", cfg.Socket, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(cfg.Socket, &st); err != nil {
		return nil, fmt.Errorf("socket %s: %w", cfg.Socket, err)
	}
	l.dev, l.ino = uint64(st.Dev), st.Ino
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, fmt.Errorf("socket %s: %w", cfg.Socket, err)
	}
	nl, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", cfg.Socket, err)
	}
	l.UnixListener = nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	return l, nil
}

// close stops listening and removes the file, unless somebody has put another
// one in its place.
func (l *listener) close() error {
	var st unix.Stat_t
	if err := unix.Lstat(l.path, &st); err == nil && uint64(st.Dev) == l.dev && st.Ino == l.ino {
		_ = os.Remove(l.path)
	}
	return l.Close()
}

// dial connects to a front-end that serves the socket, until ctx ends. It waits
// longer after each failure, up to two seconds.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		d := net.Dialer{Timeout: dialTimeout}
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}
