package fdstore

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func newNote(t *testing.T, room int) *Note {
	t.Helper()
	n, err := NewNote("test", room)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// The last content that was written whole is found, however the next write was cut short: at every byte of it.
func TestANoteIsWholeWheneverItsWriterDies(t *testing.T) {
	n := newNote(t, 64)
	for round := range 4 {
		last := bytes.Repeat([]byte{byte('a' + round)}, 10+round)
		if err := n.Write(last); err != nil {
			t.Fatal(err)
		}
		next := bytes.Repeat([]byte{byte('A' + round)}, 30)
		slot := int64(n.next%2) * int64(noteHead+n.room)
		before := make([]byte, noteHead+n.room)
		if _, err := unix.Pread(n.fd, before, slot); err != nil {
			t.Fatal(err)
		}
		if err := n.Write(next); err != nil {
			t.Fatal(err)
		}
		n.next-- // the next round writes the same slot again
		whole := append([]byte(nil), n.buf...)
		for cut := range whole {
			torn := append(append([]byte(nil), whole[:cut]...), before[cut:]...)
			if _, err := unix.Pwrite(n.fd, torn, slot); err != nil {
				t.Fatal(err)
			}
			got, err := ReadNote(n.fd)
			if err != nil || !bytes.Equal(got, last) && !bytes.Equal(got, next) {
				t.Fatalf("cut at %d of %d: %q, %v", cut, len(whole), got, err)
			}
			if cut < len(whole)-1 && !bytes.Equal(got, last) {
				t.Fatalf("cut at %d of %d: the torn content is taken for whole", cut, len(whole))
			}
		}
		if _, err := unix.Pwrite(n.fd, before, slot); err != nil {
			t.Fatal(err)
		}
	}
}

// What is no note, and what does not fit one, is refused.
func TestANoteThatIsNone(t *testing.T) {
	n := newNote(t, 8)
	if _, err := ReadNote(n.FD()); !errors.Is(err, ErrDamaged) {
		t.Errorf("never written: %v", err)
	}
	if err := n.Write(make([]byte, 9)); !errors.Is(err, ErrTooBig) {
		t.Errorf("too big: %v", err)
	}
	if err := n.Write([]byte("fits")); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadNote(n.FD()); err != nil || string(got) != "fits" {
		t.Errorf("%q, %v", got, err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := ReadNote(fd); err == nil {
		t.Error("an eventfd is no note")
	}
}

// Memory of whoever does not take the reader down.
func FuzzReadNote(f *testing.F) {
	f.Add([]byte{}, uint16(40))
	f.Add(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4}, "abcd"...), uint16(64))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		fd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, b); err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			t.Fatal(err)
		}
		_, _ = ReadNote(fd)
	})
}
