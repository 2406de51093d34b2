package vhost_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
)

// A message stays in the socket until it is answered: the heir of a process that died deals with it, once. Where nobody can tell whether
// the front-end has the answer, or the message has ended a process twice, the connection ends.
func TestAnHeirDealsWithTheMessageOfTheProcessBefore(t *testing.T) {
	question := message(user.GetFeatures, user.FlagVersion, nil)
	answer := message(user.GetFeatures, user.FlagVersion|user.FlagReply, make([]byte, 8)) // of the process before
	for name, tt := range map[string]struct {
		step        string
		waits, sent bool // the question is in the socket, the answer unread
		ends, anew  bool // the connection; the answer is the heir's
	}{
		"begun":                         {step: "begun", waits: true, anew: true},
		"begun twice":                   {step: "again", waits: true, ends: true},
		"answered, not read":            {step: "done", waits: true, sent: true},
		"answered, not read, taken off": {step: "done", sent: true},
		"answered, read, taken off":     {step: "done"},
		"answered and read, or not":     {step: "done", waits: true, ends: true},
		"of a version before":           {step: "", ends: true},
		"of a version to come":          {step: "other", waits: true, ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, cfg, _ := newHeritable(t, nil)
			c := raw(t, cfg.Socket)
			waitFor(t, "the front-end", func() bool { return p.State().Name == vhost.StateConnected })
			parcel := pack(t, p)
			parcel.state = fmt.Appendf(bytes.TrimSuffix(parcel.state, []byte("}")), `,"pending":"GET_FEATURES","step":%q}`, tt.step)
			if tt.waits {
				if _, err := c.Write(question); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range parcel.files {
				if f.Name == "connection-1" && tt.sent {
					if _, err := unix.Write(f.FD, answer); err != nil {
						t.Fatal(err)
					}
				}
			}
			notes := &notesKeeper{}
			cfg.Keep = notes
			heir, err := parcel.unpack(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer heir.Close()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if tt.ends {
				if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("%d bytes, %v", n, err)
				}
				if s := heir.State(); !errors.Is(s.Err, vhost.ErrHalfDone) {
					t.Errorf("%+v", s)
				}
				return
			}
			got := make([]byte, len(answer))
			if tt.sent || tt.anew {
				if _, err := io.ReadFull(c, got); err != nil || bytes.Equal(got, answer) == tt.anew {
					t.Fatalf("answer %x, %v", got, err)
				}
			}
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if n, err := c.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("one answer too many: %x, %v", got[:n], err)
			}
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Write(question); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, got); err != nil || bytes.Equal(got, answer) {
				t.Errorf("the next answer: %x, %v", got, err)
			}
			steps := map[string]int{}
			for _, step := range []string{"begun", "again", "done"} {
				steps[step] = notes.count(`"step":"` + step + `"`)
			}
			if want := map[bool]int{true: 1}[tt.anew]; steps["again"] != want || steps["begun"] != 1 || steps["done"] != 1+want {
				t.Errorf("notes: %v", steps)
			}
		})
	}
}

// notesKeeper has all that it was told.
type notesKeeper struct {
	mu    sync.Mutex
	notes [][]byte
}

func (*notesKeeper) Put(string, int) error { return nil }
func (*notesKeeper) Drop(string) error     { return nil }
func (k *notesKeeper) Note(state []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.notes = append(k.notes, bytes.Clone(state))
	return nil
}

// count is the number of notes that have a piece.
func (k *notesKeeper) count(piece string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, note := range k.notes {
		if bytes.Contains(note, []byte(piece)) {
			n++
		}
	}
	return n
}
