package unixsock

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who may write a folder on the way to a socket decides who the socket is.
func TestAFolderThatOthersMayWriteIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name     string
		mode     os.FileMode
		uid, gid int // -1: ours
		ok       bool
	}{
		{"ours", 0o755, -1, -1, true},
		{"sticky, as /tmp", 0o777 | os.ModeSticky, -1, -1, true},
		{"open to everybody", 0o777, -1, -1, false},
		{"open to a group", 0o775, -1, 4321, false},
		{"another user's", 0o755, 1234, -1, false},
		{"another user's, sticky", 0o777 | os.ModeSticky, 1234, -1, false},
	} {
		if (tt.uid >= 0 || tt.gid >= 0) && os.Geteuid() != 0 {
			continue // only root gives folders away; the rest is tested by everybody
		}
		base := t.TempDir()
		dir := filepath.Join(base, "folder")
		below := filepath.Join(dir, "below")
		link := filepath.Join(base, "link")
		for _, err := range []error{os.MkdirAll(below, 0o755), os.Chmod(below, 0o755), os.Chown(dir, tt.uid, tt.gid), os.Chmod(dir, tt.mode), os.Symlink("folder", link)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{dir, below, link, filepath.Join(link, "below"), filepath.Join(below, "..")} {
			l, err := Listen(config(filepath.Join(path, "s")))
			if err == nil {
				l.Close()
			}
			if tt.ok && err != nil || !tt.ok && (!errors.Is(err, ErrFolder) || !strings.Contains(err.Error(), dir)) {
				t.Errorf("%s: %s: %v", tt.name, strings.TrimPrefix(path, base), err)
			}
		}
		if tt.ok {
			continue
		}
		// The socket's own user or group may have it in a folder of theirs.
		c := config(filepath.Join(dir, "s"))
		c.UID, c.GID = tt.uid, tt.gid
		l, err := Listen(c)
		if err == nil {
			l.Close()
		}
		if want := tt.name != "open to everybody"; (err == nil) != want {
			t.Errorf("%s: for a socket of theirs: %v", tt.name, err)
		}
	}
}

func TestLinksThatLeadInACircleEnd(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.Symlink("b", filepath.Join(dir, "a")), os.Symlink("a", filepath.Join(dir, "b"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(config(filepath.Join(dir, "a", "s"))); !errors.Is(err, ErrNoFolder) {
		t.Errorf("got %v", err)
	}
}
