package vhost_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
)

func TestASocketThatCannotBeUsedIsRefused(t *testing.T) {
	dir, err := os.MkdirTemp("", "vhost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := func(name string) string { return filepath.Join(dir, name) }
	live, err := net.Listen("unix", path("live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if err := os.WriteFile(path("file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path("file"), path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, socket string
		connect      bool
		want         error
	}{
		{"live", path("live"), false, vhost.ErrSocketInUse},
		{"file", path("file"), false, vhost.ErrNotSocket},
		{"file dialled", path("file"), true, vhost.ErrNotSocket},
		{"link", path("link"), false, vhost.ErrNotSocket},
		{"folder", path("folder"), false, vhost.ErrNotSocket},
		{"missing folder", path("none/s"), false, vhost.ErrNoFolder},
		{"missing folder dialled", path("none/s"), true, vhost.ErrNoFolder},
		{"file as folder", path("file/s"), false, nil},
		{"too long", path(strings.Repeat("x", 108-len(dir)-1)), false, vhost.ErrPathTooLong},
		{"empty", "", false, vhost.ErrConfig},
		{"abstract", "@x", false, vhost.ErrConfig},
	}
	for _, tt := range tests {
		cfg := vhost.Config{Name: "vm", Socket: tt.socket, Connect: tt.connect, UID: -1, GID: -1}
		err := vhost.CheckSocket(cfg)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: check: %v", tt.name, err)
		}
		p, err := vhost.NewPort(cfg)
		if err == nil {
			_ = p.Close()
		}
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line", tt.name)
		}
	}
	if b, _ := os.ReadFile(path("file")); string(b) != "precious" {
		t.Error("file changed")
	}
	if c, err := net.Dial("unix", path("live")); err != nil {
		t.Error("live socket gone")
	} else {
		_ = c.Close()
	}
}

func TestAStaleSocketIsReplacedAndOursRemoved(t *testing.T) {
	dir, err := os.MkdirTemp("", "vhost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, strings.Repeat("s", 107-len(dir)-1)) // the longest that fits
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	cfg := vhost.Config{Name: "vm", Socket: path, Mode: 0o620, UID: os.Getuid(), GID: os.Getgid()}
	p, err := vhost.NewPort(cfg)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o620 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := vhost.CheckSocket(cfg); !errors.Is(err, vhost.ErrSocketInUse) {
		t.Errorf("second port: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}

	p, err = vhost.NewPort(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("somebody else's file removed: %v", err)
	}
}
