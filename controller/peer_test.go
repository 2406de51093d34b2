package controller

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Who may use the control socket is asked of the connection, whatever the file's mode is.
func TestPeersAreRootAndTheSocketsGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("allowed: only root can connect as somebody else")
	}
	const group = 4321
	dir, err := os.MkdirTemp("", "rscctl-peer-") // t.TempDir lets nobody else in
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, err := range []error{os.Chmod(dir, 0o755), os.Chmod(path, 0o666)} { // as if an operator had opened it
		if err != nil {
			t.Fatal(err)
		}
	}
	many := make([]uint32, 300) // more than fit the first try
	for i := range many {
		many[i] = uint32(10000 + i)
	}
	for name, tt := range map[string]struct {
		uid, gid uint32
		groups   []uint32
		want     bool
	}{
		"root":                          {0, 0, nil, true},
		"a member by its first group":   {1234, group, nil, true},
		"a member by another group":     {1234, 1234, []uint32{5, group, 7}, true},
		"a member of very many groups":  {1234, 1234, append(slices.Clone(many), group), true},
		"a stranger":                    {1234, 1234, []uint32{5, 7}, false},
		"a stranger without any groups": {1234, 1234, nil, false},
	} {
		connectAs(t, path, tt.uid, tt.gid, tt.groups)
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		for _, writes := range []bool{false, true} {
			want := mayNothing
			switch {
			case tt.uid == 0, tt.want && writes:
				want = mayWrite
			case tt.want:
				want = mayRead
			}
			got := peerOf(c, func() (uint32, bool) { return group, true }, writes)
			if got.access != want || got.uid != tt.uid || got.pid == 0 {
				t.Errorf("%s: %+v, want access %d of user %d (the group may write: %t)", name, got, want, tt.uid, writes)
			}
			if got := peerOf(c, func() (uint32, bool) { return group, false }, writes); got.access != mayNothing && tt.uid != 0 {
				t.Errorf("%s: allowed by a file that is not ours", name)
			}
		}
		c.Close()
	}
}

func TestALiveControlSocketIsHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenControl(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Lstat(path); err != nil || st.Mode() != sockMode|os.ModeSocket {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := listenControl(path, ""); !errors.Is(err, ErrHeld) {
		t.Errorf("got %v, want ErrHeld", err)
	}
}
