package fdstore

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Linux starts no process with a longer variable: what would not fit is refused, and what was dropped gives its room back.
func TestNoMoreIsKeptThanAProcessCanStartWith(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv(notifyEnv, path)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const long = 200
	all := 0
	for i := 0; all+long+1 < maxNames; i++ {
		s.Has(fmt.Sprintf("%0*d", long, i))
		all += long + 1
	}
	last := strings.Repeat("x", maxNames-all-1)
	if err := s.Put(last+"y", 0); !errors.Is(err, ErrTooBig) {
		t.Errorf("a byte too much: %v", err)
	}
	for range 2 { // the second one is in place of the first
		if err := s.Put(last, 0); err != nil {
			t.Error(err)
		}
	}
	if err := s.Drop(fmt.Sprintf("%0*d", long, 0)); err != nil {
		t.Error(err)
	}
	if err := s.Put(strings.Repeat("z", long), 0); err != nil {
		t.Errorf("after a drop: %v", err)
	}
	env := "N=" + strings.Repeat("x", maxNames)
	cmd := exec.Command("/bin/true")
	cmd.Env = []string{env}
	if err := cmd.Run(); err != nil {
		t.Errorf("Linux does not take a variable of that size: %v", err)
	}
}

// Where there is no store, what is told is told to nobody.
func TestNoStoreIsNobody(t *testing.T) {
	var s *Store
	if err := errors.Join(s.Tell("STOPPING=1"), s.Ready(), s.Main(1), s.Wait()); err != nil {
		t.Error(err)
	}
}
