package parcel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connection as the control socket has it.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

func memory(t *testing.T, content string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("parcel-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte(content)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func event(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// All that is put in arrives, under its name, as what it is: also more than one message takes.
func TestAParcelArrivesWhole(t *testing.T) {
	a, b := pair(t)
	p := New("1.2.3")
	p.State = json.RawMessage(`{"answer":42}`)
	for i := range 3*maxBatch + 1 {
		if err := p.Put("memory."+string(rune('a'+i/26))+string(rune('a'+i%26)), memory(t, string(rune('0'+i%10)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Put("kick", event(t)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() { sent <- p.Send(a) }()
	got, err := Receive(b)
	if err != nil || <-sent != nil {
		t.Fatal(err)
	}
	defer got.Close()
	defer p.Close()
	if got.From != "1.2.3" || string(got.State) != `{"answer":42}` || len(got.Files()) != 3*maxBatch+2 {
		t.Fatalf("%s %s, %d files", got.From, got.State, len(got.Files()))
	}
	for i, f := range p.Files() {
		if g := got.Files()[i]; g.Name != f.Name || g.Kind != f.Kind {
			t.Fatalf("file %d: %v for %v", i, g, f)
		}
	}
	fd, err := got.Take("memory.ab", Memory)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var c [1]byte
	if n, _ := unix.Pread(fd, c[:], 0); n != 1 || c[0] != '1' {
		t.Errorf("memory.ab holds %q", c)
	}
}

// What is not there, was taken before, or is something else than its taker wants, is refused with its name.
func TestEachDescriptorIsTakenOnceAndAsWhatItIs(t *testing.T) {
	p := New("")
	defer p.Close()
	if err := p.Put("kick", event(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Put("kick", event(t)); !errors.Is(err, ErrTwice) {
		t.Errorf("put twice: %v", err)
	}
	if _, err := p.Take("kick", Memory); !errors.Is(err, ErrKind) || !strings.Contains(err.Error(), "kick") {
		t.Errorf("as memory: %v", err)
	}
	fd, err := p.Take("kick", Event)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for _, name := range []string{"kick", "call"} {
		if _, err := p.Take(name, Event); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// wire is a parcel as bytes and messages, to be sent wrong.
type wire struct {
	head head
	fds  []int
}

func (w wire) send(t *testing.T, c *net.UnixConn) {
	t.Helper()
	body, err := json.Marshal(w.head)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(len(body)))
	if _, err := c.Write(append(b, body...)); err != nil {
		t.Fatal(err)
	}
	if len(w.fds) > 0 {
		if _, _, err := c.WriteMsgUnix([]byte{descriptorMark}, unix.UnixRights(w.fds...), nil); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
}

// A parcel that is wrong is refused with the reason, and no descriptor of it stays open.
func TestAWrongParcelIsRefused(t *testing.T) {
	mem, kick := memory(t, "x"), event(t)
	defer unix.Close(mem)
	defer unix.Close(kick)
	socks, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socks[0])
	defer unix.Close(socks[1])
	files := func(names ...any) (out []headFile) {
		for i := 0; i < len(names); i += 2 {
			out = append(out, headFile{names[i].(string), names[i+1].(Kind)})
		}
		return out
	}
	for _, c := range []struct {
		name string
		wire wire
		want error
	}{
		{"from the future", wire{head: head{Version: Version + 1, From: "9.9"}}, ErrNewer},
		{"of no version", wire{head: head{}}, ErrDamaged},
		{"a descriptor of the wrong kind", wire{head{Version: 1, Files: files("m", Memory)}, []int{kick}}, ErrKind},
		{"a descriptor missing", wire{head{Version: 1, Files: files("m", Memory, "k", Event)}, []int{mem}}, ErrCut},
		{"one too many", wire{head{Version: 1, Files: files("m", Memory)}, []int{mem, kick}}, ErrDamaged},
		{"a name twice", wire{head{Version: 1, Files: files("m", Memory, "m", Memory)}, []int{mem, mem}}, ErrTwice},
		{"a socket twice", wire{head{Version: 1, Files: files("a", Stream, "b", Stream)}, []int{socks[0], socks[0]}}, ErrTwice},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			before := openFDs(t)
			c.wire.send(t, a)
			p, err := Receive(b)
			if p != nil || !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if now := openFDs(t); now != before-1 { // a has been closed
				t.Errorf("%d descriptors open, %d before", now, before-1)
			}
		})
	}
}

// A parcel that ends early is refused wherever it ends.
func TestACutParcelIsRefused(t *testing.T) {
	body, err := json.Marshal(head{Version: 1, From: "1", Files: []headFile{{"m", Memory}}, State: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	all := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(all[len(magic):], uint32(len(body)))
	all = append(all, body...)
	for n := range all {
		a, b := pair(t)
		if _, err := a.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if _, err := Receive(b); !errors.Is(err, ErrCut) {
			t.Fatalf("%d of %d bytes: %v", n, len(all), err)
		}
	}
}

// Bytes of whoever do not take the receiver down, and leave it no descriptor.
func FuzzReceive(f *testing.F) {
	body, _ := json.Marshal(head{Version: 1, Files: []headFile{{"m", Memory}}, State: json.RawMessage(`{"a":1}`)})
	seed := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(body)))
	f.Add(append(slices.Clone(seed), body...), true)
	f.Add([]byte(magic), false)
	f.Fuzz(func(t *testing.T, data []byte, attach bool) {
		a, b := pair(t)
		mem := memory(t, "m")
		defer unix.Close(mem)
		go func() {
			defer a.Close()
			_, _ = a.Write(data)
			if attach {
				_, _, _ = a.WriteMsgUnix([]byte{descriptorMark}, unix.UnixRights(mem), nil)
			}
		}()
		p, err := Receive(b)
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if p != nil {
			p.Close()
		}
	})
}
