package vhost_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/vring"
)

// A message stays in the socket until it is dealt with, and its answer in a file until it is sent: the heir of a process that died does
// the rest, once. A message that has ended a process twice ends its connection.
func TestAnHeirDealsWithTheMessageOfTheProcessBefore(t *testing.T) {
	question := message(user.GetFeatures, user.FlagVersion, nil)
	answer := message(user.GetFeatures, user.FlagVersion|user.FlagReply, make([]byte, 8)) // of the process before
	for name, tt := range map[string]struct {
		step  string
		waits bool // the question is in the socket
		sent  int  // bytes of the answer
		read  bool // by the front-end
		ends  bool // the connection
		anew  bool // the answer is the heir's
	}{
		"begun":                {step: "begun", waits: true, anew: true},
		"begun twice":          {step: "again", waits: true, ends: true},
		"done":                 {step: "done", waits: true},
		"done and taken off":   {step: "done"},
		"half sent":            {step: "done", sent: 7},
		"half sent, read":      {step: "done", sent: 7, read: true},
		"sent":                 {step: "done", sent: len(answer)},
		"sent and read":        {step: "done", sent: len(answer), read: true},
		"of a version before":  {step: "", ends: true},
		"of a version to come": {step: "other", waits: true, ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, cfg, _ := newHeritable(t, func(c *vhost.Config) { c.Keep = &notesKeeper{} })
			c := raw(t, cfg.Socket)
			_ = c.SetReadDeadline(time.Now().Add(patience))
			waitFor(t, "the front-end", func() bool { return p.State().Name == vhost.StateConnected })
			parcel := pack(t, p)
			const at = 40
			parcel.state = fmt.Appendf(bytes.TrimSuffix(parcel.state, []byte("}")), `,"pending":"GET_FEATURES","step":%q,"at":%d,"bytes":%d}`, tt.step, at, len(answer))
			if tt.waits {
				if _, err := c.Write(question); err != nil {
					t.Fatal(err)
				}
			}
			files := map[string]int{}
			for _, f := range parcel.files {
				files[f.Name] = f.FD
			}
			if _, err := unix.Pwrite(files["answers-1"], answer, at); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Seek(files["answers-1"], at, unix.SEEK_SET); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(answer))
			if tt.sent > 0 {
				if _, err := unix.Sendfile(files["connection-1"], files["answers-1"], nil, tt.sent); err != nil {
					t.Fatal(err)
				}
			}
			was := 0
			if tt.read {
				if _, err := io.ReadFull(c, got[:tt.sent]); err != nil {
					t.Fatal(err)
				}
				was = tt.sent
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
			if _, err := io.ReadFull(c, got[was:]); err != nil || bytes.Equal(got, answer) == tt.anew {
				t.Fatalf("answer %x, %v", got, err)
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
			// What was pending stays so until it is dealt with: this process may die as well.
			if again := map[bool]int{true: 1}[tt.anew]; steps["again"] != again || steps["begun"] != 1+again || steps["done"] != 2 {
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

// A ring that the process before started by a message that its heir finds has moved since: it goes on where it is, and not at the
// front-end's base.
func TestARingOfAMessageThatComesAgainGoesOnWhereItIs(t *testing.T) {
	before, cfg, _ := newHeritable(t, func(c *vhost.Config) { c.Keep = &notesKeeper{} })
	s := newScripted(t, cfg.Socket)
	defer s.close()
	script := everyHandler()
	kick := slices.IndexFunc(script, func(st step) bool { return st.request == user.SetVringKick })
	if n := s.play(script[:kick]); n != kick {
		t.Fatalf("%d of %d steps", n, kick)
	}
	c := pack(t, before)
	c.state = append(c.state[:len(c.state)-1], `,"pending":"SET_VRING_KICK","step":"begun"}`...)
	p, err := c.unpack(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	avail, used := vring.Offsets(scriptNum)
	for at, moved := range map[int]uint16{avail: 80, used: 70} {
		if _, err := unix.Pwrite(s.a, binary.LittleEndian.AppendUint16(nil, moved), int64(at)+2); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.play(script[kick : kick+1]); n != 1 {
		t.Fatalf("thrown out: %s", p.State().Reason)
	}
	if _, err := s.c.Write(message(user.GetVringBase, user.FlagVersion, user.VringState{}.Append(nil))); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, user.HeaderSize+8)
	if _, err := io.ReadFull(s.c, got); err != nil {
		t.Fatal(err)
	}
	var base user.VringState
	if err := base.Decode(got[user.HeaderSize:]); err != nil || base.Num != 70 {
		t.Errorf("it stands at %d, %v", base.Num, err)
	}
}

// A front-end that listens no more when it is answered is gone, and nothing else: the signal of a broken pipe, which sendfile raises, ends no
// process.
func TestAFrontEndThatListensNoMoreIsGone(t *testing.T) {
	_, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Keep = &notesKeeper{} })
	c := raw(t, cfg.Socket)
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(message(user.GetFeatures, user.FlagVersion, nil)); err != nil {
		t.Fatal(err)
	}
	if reason := <-log.stopped; !errors.Is(reason, user.ErrDisconnected) {
		t.Errorf("%v", reason)
	}
}
