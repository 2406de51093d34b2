package fdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script names what the child of a test does; see child.
const script = "RSCCTL_FDSTORE_TEST"

func TestMain(m *testing.M) {
	if what := os.Getenv(script); what != "" {
		os.Exit(child(what))
	}
	os.Exit(m.Run())
}

// child is a data plane: each of its lives appends to the file called log what it found.
func child(what string) int {
	log := os.Getenv(script + "_LOG")
	say := func(text string) {
		f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, text)
			f.Close()
		}
		if err != nil {
			os.Exit(99)
		}
	}
	files, err := Inherited()
	store, serr := Open()
	if err != nil || serr != nil || store == nil {
		say(fmt.Sprintf("error %v %v", err, serr))
		return 98
	}
	if what == "drop" {
		return dropped(store, files, say)
	}
	found := "nothing"
	if fd, ok := files["note"]; ok {
		b, err := ReadNote(fd)
		found = fmt.Sprintf("%s %v %d", b, err, len(files))
	}
	b, _ := os.ReadFile(log)
	if Again() != (len(b) > 0) {
		found = fmt.Sprintf("after %q: again %t", b, Again())
	}
	say(found)
	if what == "slow" && found != "nothing" {
		time.Sleep(time.Hour)
	}
	n, err := NewNote("child", 64)
	if err != nil {
		return 97
	}
	content := strings.TrimSuffix(found, " <nil> 1") + "+"
	if err := errors.Join(n.Write([]byte(content)), store.Put("note", n.FD()), store.Put("other", n.FD()), store.Drop("other")); err != nil {
		say(err.Error())
		return 96
	}
	if what == "heir" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if store.Ready() != nil {
		return 95
	}
	if b, _ := os.ReadFile(log); what == "loop" || bytes.Count(b, []byte("\n")) < 3 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return 0
}

// dropped keeps both ends of a pipe, dies, and then drops one of them, of which nothing must be left.
func dropped(store *Store, files map[string]int, say func(string)) int {
	if len(files) == 0 {
		var p [2]int
		if err := errors.Join(unix.Pipe2(p[:], unix.O_CLOEXEC), store.Put("read", p[0]), store.Put("write", p[1]), store.Ready()); err != nil {
			say(err.Error())
			return 96
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	end := []unix.PollFd{{Fd: int32(files["read"]), Events: unix.POLLIN}}
	if err := errors.Join(unix.Close(files["write"]), store.Ready(), store.Drop("write"), store.Wait()); err != nil {
		say(err.Error())
		return 96
	}
	_, err := unix.Poll(end, 0)
	say(fmt.Sprintf("closed: %t, %v", end[0].Revents&unix.POLLHUP != 0, err))
	return 0
}

func keep(t *testing.T, what string) (code int, lives []string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	t.Setenv(script, what)
	t.Setenv(script+"_LOG", path)
	code, err = Keep(context.Background(), Child{Path: os.Args[0], Heir: strings.Contains(what, "heir"), Log: slog.New(slog.DiscardHandler)})
	b, _ := os.ReadFile(path)
	return code, strings.Split(strings.TrimSpace(string(b)), "\n"), err
}

// What a process had put in is there for the next one when it was killed, and what it had dropped is not. An end that is no crash ends the
// keeper.
func TestWhatIsKeptOutlivesAKill(t *testing.T) {
	code, lives, err := keep(t, "end")
	want := []string{"nothing", "nothing+ <nil> 1", "nothing++ <nil> 1"}
	if err != nil || code != 0 || strings.Join(lives, "|") != strings.Join(want, "|") {
		t.Errorf("code %d, %v, lives %q", code, err, lives)
	}
}

// What is dropped is closed, also when it was handed to the process that runs: a listener or an AF_XDP socket that nobody has any more would
// be in the way of the next.
func TestWhatIsDroppedIsClosed(t *testing.T) {
	code, lives, err := keep(t, "drop")
	if err != nil || code != 0 || strings.Join(lives, "|") != "closed: true, <nil>" {
		t.Errorf("code %d, %v, lives %q", code, err, lives)
	}
}

// A process that is not ready in time is ended with all that was kept, which it has as well, and one after it begins anew: or that one would
// go on with what the next could not have.
func TestWhoIsLateIsReplaced(t *testing.T) {
	code, lives, err := keep(t, "slow")
	if err != nil || code != 0 || strings.Join(lives, "|") != "nothing|nothing+ <nil> 1|nothing" {
		t.Errorf("code %d, %v, lives %q", code, err, lives)
	}
}

// A process that dies again and again ends its keeper, and all that was kept.
func TestACrashLoopEnds(t *testing.T) {
	_, lives, err := keep(t, "loop")
	if !errors.Is(err, ErrCrashLoop) || len(lives) != loopCount {
		t.Errorf("%v after %d lives", err, len(lives))
	}
}

// An heir that dies before it was ready is not started again: the process that it was to take over from goes on.
func TestAnHeirThatDiesBeforeItWasReady(t *testing.T) {
	code, lives, err := keep(t, "heir")
	if err != nil || code == 0 || len(lives) != 1 {
		t.Errorf("code %d, %v, lives %q", code, err, lives)
	}
}

// One that was ready is gone on with as any other process.
func TestAnHeirThatDiesOnceItWasReady(t *testing.T) {
	code, lives, err := keep(t, "ready heir")
	if err != nil || code != 0 || len(lives) != 3 {
		t.Errorf("code %d, %v, lives %q", code, err, lives)
	}
}

// Names that the protocol cannot carry are refused before anything is sent.
func TestNamesThatCannotBeKept(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	s := &Store{fd: fds[0]}
	defer s.Close()
	for _, name := range []string{"", "a:b", "a b", "a\nREADY=1", strings.Repeat("x", 256)} {
		if err := errors.Join(s.Put(name, 0), s.Drop(name)); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A process that was not started for what lies in its environment takes nothing.
func TestWhatWasKeptForAnotherProcessIsNotTaken(t *testing.T) {
	t.Setenv(countEnv, "1")
	t.Setenv(namesEnv, "x")
	t.Setenv(pidEnv, "1")
	if files, err := Inherited(); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	t.Setenv(keeperEnv, "1")
	t.Setenv(countEnv, "two")
	if _, err := Inherited(); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}
