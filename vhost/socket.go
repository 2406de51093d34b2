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

	"github.com/rscctl/rscctl/vhost/unixsock"
)

const (
	backlog     = 16
	dialTimeout = time.Second
)

// CheckSocket says, without changing anything, whether NewPort would accept
// the configuration's socket. The errors are ErrConfig, ErrPathTooLong,
// ErrNoFolder, ErrNotSocket and, unless we dial, ErrFolder and ErrSocketInUse.
func CheckSocket(cfg Config) error {
	if cfg.Connect {
		return checkDial(cfg.Socket)
	}
	return socketError(unixsock.Check(socketConfig(cfg)))
}

func socketConfig(cfg Config) unixsock.Config {
	mode := cfg.Mode
	if mode == 0 {
		mode = 0o600
	}
	return unixsock.Config{Path: cfg.Socket, Mode: mode, UID: cfg.UID, GID: cfg.GID, Backlog: backlog}
}

// listen makes the socket file.
func listen(cfg Config) (*unixsock.Listener, error) {
	l, err := unixsock.Listen(socketConfig(cfg))
	return l, socketError(err)
}

// socketError makes a path that cannot be one an error of the configuration.
func socketError(err error) error {
	if errors.Is(err, unixsock.ErrPath) {
		return fmt.Errorf("%w: %w", err, ErrConfig)
	}
	return err
}

// checkDial checks the path of a socket that a front-end serves, perhaps
// later.
func checkDial(path string) error {
	if err := unixsock.CheckPath(path); err != nil {
		return socketError(err)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket %s: %w", path, err)
		}
		return fmt.Errorf("socket %s: %w", path, ErrNoFolder)
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: %w", path, ErrNotSocket)
	}
	return nil
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
