package vhost_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// held is a parcel of a port with a guest whose rings run, of which any number of copies can be made.
type held struct {
	parcel
	cfg vhost.Config
	g   *guest
	log *portLog
}

func newHeld(t testing.TB) *held {
	t.Helper()
	p, cfg, log := newHeritable(t, nil)
	g := newGuest(t, cfg.Socket, nil).start()
	h := &held{pack(t, p), cfg, g, log}
	t.Cleanup(func() { user.CloseFiles(h.files) })
	return h
}

func (h *held) copy(t testing.TB) parcel {
	t.Helper()
	files, err := user.DupFiles(h.files)
	if err != nil {
		t.Fatal(err)
	}
	return parcel{bytes.Clone(h.state), files}
}

// refused fails the test unless the parcel is refused for that reason, in words of one line, and with nothing left open.
func (h *held) refused(t *testing.T, name string, c parcel, want error) {
	t.Helper()
	p, err := c.unpack(h.cfg)
	if err == nil {
		t.Errorf("%s: taken", name)
		_ = p.Close()
		return
	}
	if !errors.Is(err, want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
		t.Errorf("%s: %v", name, err)
	}
}

// goesOn fails the test unless the guest is served by who has the parcel now: the front-end has noticed nothing.
func (h *held) goesOn(t *testing.T) {
	t.Helper()
	p, err := h.copy(t).unpack(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, p, h.g, 0)
	if err := h.g.SetCall(h.g.RX(0), true); err != nil {
		t.Error(err)
	}
	if n := p.State().Connections; n != 1 || len(h.log.stopped) > 0 {
		t.Errorf("%d connections, %d ended", n, len(h.log.stopped))
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestAStateThatIsCutIsRefused(t *testing.T) {
	h := newHeld(t)
	fds := openFDs(t)
	for n := range h.state {
		c := h.copy(t)
		c.state = c.state[:n]
		h.refused(t, "cut", c, vhost.ErrParcel)
	}
	closedSince(t, fds)
	h.goesOn(t)
}

func TestAStateOutOfRangeIsRefused(t *testing.T) {
	h := newHeld(t)
	fds := openFDs(t)
	for _, tt := range []struct {
		name string
		edit func(st *vhost.PortState)
		want error
	}{
		{"of the future", func(st *vhost.PortState) { st.Schema++ }, vhost.ErrNewer},
		{"of no version", func(st *vhost.PortState) { st.Schema = 0 }, vhost.ErrParcel},
		{"another socket", func(st *vhost.PortState) { st.Socket += "x" }, vhost.ErrParcel},
		{"dialled", func(st *vhost.PortState) { st.Connect = true }, vhost.ErrParcel},
		{"no listener", func(st *vhost.PortState) { st.Listener = "" }, vhost.ErrParcel},
		{"no identity", func(st *vhost.PortState) { st.ID = nil }, vhost.ErrParcel},
		{"no connection", func(st *vhost.PortState) { st.FrontEnd.Connection = "" }, vhost.ErrParcel},
		{"listener as connection", func(st *vhost.PortState) { st.FrontEnd.Connection = st.Listener }, vhost.ErrParcel},
		{"connection as waiting", func(st *vhost.PortState) { st.Waiting = st.FrontEnd.Connection }, vhost.ErrParcel},
		{"features not offered", func(st *vhost.PortState) { st.FrontEnd.Features |= 1 << 34 }, user.ErrFeatures},
		{"features in conflict", func(st *vhost.PortState) { st.FrontEnd.Features = 1 << virtio.FGuestTSO4 }, vhost.ErrParcel},
		{"protocol features", func(st *vhost.PortState) { st.FrontEnd.Protocol |= 1 << 14 }, user.ErrFeatures},
		{"MTU", func(st *vhost.PortState) { st.FrontEnd.MTU = 1 << 16 }, vhost.ErrParcel},
		{"refusals", func(st *vhost.PortState) { st.FrontEnd.Refusals = -1 }, vhost.ErrParcel},
		{"ring 8 of 8", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Index = 8 }, vhost.ErrParcel},
		{"ring -1", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Index = -1 }, vhost.ErrParcel},
		{"ring twice", func(st *vhost.PortState) { st.FrontEnd.Rings[1].Index = 0 }, vhost.ErrParcel},
		{"ring size 3", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Num = 3 }, vhost.ErrParcel},
		{"ring size 65536", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Num = 65536 }, vhost.ErrParcel},
		{"ring size -1", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Num = -1 }, vhost.ErrParcel},
		{"base", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Base = 1 << 16 }, vhost.ErrParcel},
		{"more lost than there are", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Lost = 65 }, vhost.ErrParcel},
		{"ring outside of memory", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Addr.Used = 8 }, user.ErrRingAddress},
		{"ring misaligned", func(st *vhost.PortState) { st.FrontEnd.Rings[1].Addr.Desc++ }, user.ErrRingAddress},
		{"kicked without kick", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Kick = "" }, vhost.ErrParcel},
		{"kick of a ring that is not kicked", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Kicked = false }, vhost.ErrParcel},
		{"kick missing", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Kick = "kick" }, vhost.ErrParcel},
		{"kick of two rings", func(st *vhost.PortState) { st.FrontEnd.Rings[1].Kick = st.FrontEnd.Rings[0].Kick }, vhost.ErrParcel},
		{"memory as call", func(st *vhost.PortState) { st.FrontEnd.Rings[0].Call = st.FrontEnd.Memory[0].File }, vhost.ErrParcel},
		{"call as memory", func(st *vhost.PortState) { st.FrontEnd.Memory[0].File = st.FrontEnd.Rings[0].Call }, vhost.ErrParcel},
		{"memory of size 0", func(st *vhost.PortState) { st.FrontEnd.Memory[0].Size = 0 }, vhost.ErrParcel},
		{"memory beyond its file", func(st *vhost.PortState) { st.FrontEnd.Memory[0].Offset = 4096 }, vhost.ErrParcel},
		{"a part of the memory", func(st *vhost.PortState) { st.FrontEnd.Memory[0].Size /= 2 }, vhost.ErrParcel},
		{"memory twice", func(st *vhost.PortState) { m := &st.FrontEnd.Memory; *m = append(*m, (*m)[0]) }, vhost.ErrParcel},
		{"510 regions", func(st *vhost.PortState) { st.FrontEnd.Memory = make([]user.RegionState, 510) }, vhost.ErrParcel},
		{"510 regions removed", func(st *vhost.PortState) { st.FrontEnd.Removed = make([]user.RegionState, 510) }, vhost.ErrParcel},
	} {
		c := h.copy(t)
		st, err := vhost.ReadPortState(c.state)
		if err != nil {
			t.Fatal(err)
		}
		tt.edit(&st)
		if c.state, err = json.Marshal(st); err != nil {
			t.Fatal(err)
		}
		h.refused(t, tt.name, c, tt.want)
	}
	for name, edit := range map[string][2]string{
		"an array":           {string(h.state), "[]"},
		"a text as number":   {`"index":1`, `"index":"1"`},
		"a negative address": {`"gpa":`, `"gpa":-`},
		"a status too large": {`"status":`, `"status":9`},
		"more behind it":     {`"schema":1`, `"schema":1}{"schema":1`},
	} {
		c := h.copy(t)
		c.state = []byte(strings.Replace(string(c.state), edit[0], edit[1], 1))
		if bytes.Equal(c.state, h.state) {
			t.Fatal(name)
		}
		h.refused(t, name, c, vhost.ErrParcel)
	}
	closedSince(t, fds)
	h.goesOn(t)
}

// Every file of a parcel is missing, comes twice, or is of every other kind in turn.
func TestAParcelWithWrongFilesIsRefused(t *testing.T) {
	h := newHeld(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := unix.MemfdCreate("other", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(other, 8<<20); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
	if err != nil {
		t.Fatal(err)
	}
	strangers := []int{pipe[0], pipe[1], pair[0], tcp, unbound, other, int(folder.Fd()), event}
	defer func() {
		for _, fd := range append(strangers, pair[1]) {
			if fd != int(folder.Fd()) {
				_ = unix.Close(fd)
			}
		}
		_ = folder.Close()
	}()
	kind := func(name string) string { return strings.SplitN(name, "-", 2)[0] }
	fds := openFDs(t)
	for i, f := range h.files {
		c := h.copy(t)
		_ = unix.Close(c.files[i].FD)
		c.files = slices.Delete(c.files, i, i+1)
		h.refused(t, f.Name+" missing", c, vhost.ErrParcel)

		c = h.copy(t)
		twice, err := user.DupFiles(c.files[i : i+1])
		if err != nil {
			t.Fatal(err)
		}
		c.files = append(c.files, twice...)
		h.refused(t, f.Name+" twice", c, vhost.ErrParcel)

		c = h.copy(t)
		j := (i + 1) % len(c.files)
		_ = unix.Close(c.files[j].FD)
		c.files[j].FD = c.files[i].FD
		h.refused(t, f.Name+" under two names", c, vhost.ErrParcel)

		c = h.copy(t)
		_ = unix.Close(c.files[i].FD)
		h.refused(t, f.Name+" closed", c, vhost.ErrParcel)

		c = h.copy(t)
		_ = unix.Close(c.files[i].FD)
		c.files[i].FD = -1
		h.refused(t, f.Name+" of no number", c, vhost.ErrParcel)

		replace := func(what string, fd int) {
			t.Helper()
			c := h.copy(t)
			if err := unix.Dup3(fd, c.files[i].FD, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			h.refused(t, what+" as "+f.Name, c, vhost.ErrParcel)
		}
		for _, o := range h.files {
			if kind(o.Name) != kind(f.Name) && !(isEvent(o.Name) && isEvent(f.Name)) {
				replace(o.Name, o.FD)
			}
		}
		for n, fd := range strangers {
			if kind(f.Name) == "call" && fd == event { // one that the peer reads may be a semaphore
				continue
			}
			what, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			replace([]string{"", "the other end of "}[n%2]+what, fd)
		}
	}
	closedSince(t, fds)
	h.goesOn(t)
}

func isEvent(name string) bool {
	return strings.HasPrefix(name, "kick") || strings.HasPrefix(name, "call")
}

// Unknown names are of a newer writer that says that older readers may read it, and left-over files are a crash's.
func TestAStateWithMoreThanIsKnownIsTaken(t *testing.T) {
	h := newHeld(t)
	c := h.copy(t)
	c.state = append(c.state[:len(c.state)-1], `,"colour":"blue"}`...)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := unix.Dup(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	defer unix.Close(pair[1])
	c.files = append(c.files, vhost.NamedFile{Name: "call-9-9-9", FD: fd}, vhost.NamedFile{Name: "connection-9", FD: pair[0]})
	p, err := c.unpack(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, p, h.g, 0)
	if n, err := unix.Read(pair[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("a connection that nobody serves: %d, %v", n, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzPortState: whatever a state says, with the files of a real one, it is refused with a reason, or makes a port that can be
// closed; nothing is left open or mapped.
func FuzzPortState(f *testing.F) {
	p, cfg, _ := newHeritable(f, nil)
	s := user.FrontendConfig{Socket: cfg.Socket, Features: all, RingSize: 64, Memory: 1 << 20}
	g, err := user.OpenFrontend(f.Context(), s)
	if err != nil {
		f.Fatal(err)
	}
	defer g.Close()
	if err := g.Start(); err != nil {
		f.Fatal(err)
	}
	c := pack(f, p)
	defer user.CloseFiles(c.files)
	here := []string{cfg.Socket, "@socket"} // what is another in each process that fuzzes
	for _, f := range c.files {
		if strings.HasPrefix(f.Name, "memory") {
			here = append(here, f.Name, "@memory")
		}
	}
	seed := []byte(strings.NewReplacer(here...).Replace(string(c.state)))
	slices.Reverse(here)
	local := strings.NewReplacer(here...)
	f.Add(seed)
	for _, step := range []string{"", "begun", "again", "done"} {
		f.Add(fmt.Appendf(bytes.TrimSuffix(bytes.Clone(seed), []byte("}")), `,"pending":"SET_VRING_CALL","step":%q}`, step))
	}
	f.Add([]byte(`{"schema":1}`))
	f.Add([]byte(`{"schema":2}`))
	cfg.Hooks, cfg.Logf = vhost.Hooks{}, nil
	maps := mapsOf(f, "rscctl-guest")
	f.Fuzz(func(t *testing.T, state []byte) {
		state = []byte(local.Replace(string(state)))
		// The connection is ended by some states, so each gets one of its own; nobody is at its other end.
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		files, err := user.DupFiles(c.files)
		if err != nil {
			t.Fatal(err)
		}
		for i := range files {
			if strings.HasPrefix(files[i].Name, "connection") {
				_ = unix.Close(files[i].FD)
				files[i].FD = pair[0]
			}
		}
		st, err := vhost.ReadPortState(state)
		if err != nil {
			if !errors.Is(err, vhost.ErrParcel) && !errors.Is(err, vhost.ErrNewer) {
				t.Errorf("%v", err)
			}
			user.CloseFiles(files)
			return
		}
		before := openFDs(t)
		for _, f := range files {
			delete(before, strconv.Itoa(f.FD))
		}
		heir, err := vhost.Unpack(cfg, st, files)
		switch {
		case err == nil:
			_, _, _ = heir.TX(0).Poll(64, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil)
			if again, files, err := heir.Pack(); err == nil {
				_ = heir.Close() // waits for its mappings
				if heir, err = vhost.Unpack(cfg, again, files); err != nil {
					t.Errorf("what it made was refused: %v", err)
				}
			}
			if heir != nil {
				if err := heir.Close(); err != nil {
					t.Error(err)
				}
			}
		case !errors.Is(err, vhost.ErrParcel) && !errors.Is(err, vhost.ErrNewer):
			t.Errorf("%v", err)
		}
		if n := mapsOf(t, "rscctl-guest"); n != maps {
			t.Errorf("%d mappings, %d before", n, maps)
		}
		closedSince(t, before)
	})
}
