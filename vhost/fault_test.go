package vhost_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// Where the memory of a scripted front-end lies, and how large each of its two regions is.
const (
	scriptUVA = 0x5500_0000_0000
	scriptMem = 1 << 20
	scriptNum = 64 // descriptors of a ring
)

// step is one message of a script: its descriptors are the first or second memory file, or an eventfd.
type step struct {
	request user.Request
	payload []byte
	fds     string // of 'A', 'B', 'E'
}

// everyHandler is a life of two queue pairs in which each request that can start, stop or move a ring does so while
// rings run.
func everyHandler() (script []step) {
	add := func(r user.Request, payload []byte, fds string) { script = append(script, step{r, payload, fds}) }
	state := func(i, n uint32) []byte { return user.VringState{Index: i, Num: n}.Append(nil) }
	u64 := func(v uint64) []byte { return user.AppendU64(nil, v) }
	avail, used := vring.Offsets(scriptNum)
	addr := func(i uint32) []byte {
		at := uint64(scriptUVA) + uint64(i)*0x10000
		return user.VringAddr{Index: i, Desc: at, Avail: at + uint64(avail), Used: at + uint64(used)}.Append(nil)
	}
	const protocol = 1 << virtio.FProtocolFeatures
	a := user.MemRegion{Size: scriptMem, UVA: scriptUVA}
	b := user.MemRegion{GPA: scriptMem, Size: scriptMem, UVA: scriptUVA + scriptMem}
	start := func(features uint64) { // without EVENT_IDX a start writes, too
		add(user.SetProtocolFeatures, u64(uint64(user.DefaultProtocol)), "")
		add(user.SetFeatures, u64(features), "")
		for i := range uint32(4) {
			add(user.SetVringCall, u64(uint64(i)), "E")
			add(user.SetVringErr, u64(uint64(i)), "E")
			add(user.SetVringNum, state(i, scriptNum), "")
			add(user.SetVringBase, state(i, 0), "")
			add(user.SetVringAddr, addr(i), "")
			add(user.SetVringKick, u64(uint64(i)), "E")
			add(user.SetVringEnable, state(i, 1), "")
		}
	}
	add(user.SetOwner, nil, "")
	add(user.NetSetMTU, u64(1500), "")
	add(user.SetMemTable, user.AppendMemTable(nil, []user.MemRegion{a}), "A")
	start(protocol | 1<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf)
	add(user.SetStatus, u64(0xf), "")
	add(user.AddMemReg, user.AppendSingleRegion(nil, b), "B")
	add(user.RemMemReg, user.AppendSingleRegion(nil, b), "")
	add(user.SetMemTable, user.AppendMemTable(nil, []user.MemRegion{a, b}), "AB")
	add(user.SetFeatures, u64(protocol|1<<virtio.FVersion1), "")
	for i := range uint32(4) {
		add(user.SetVringKick, u64(uint64(i)), "E")
		add(user.SetVringCall, u64(uint64(i)), "E")
		add(user.SetVringEnable, state(i, 0), "")
		add(user.SetVringEnable, state(i, 1), "")
	}
	add(user.ResetOwner, nil, "")
	for i := range uint32(4) {
		add(user.GetVringBase, state(i, 0), "")
		add(user.SetVringNum, state(i, scriptNum), "")
		add(user.SetVringAddr, addr(i), "")
		add(user.SetVringKick, u64(uint64(i)), "E")
	}
	add(user.ResetDevice, nil, "")
	start(1<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf) // no protocol features: switches all rings on
	for i := range uint32(4) {
		add(user.GetVringBase, state(i, 0), "")
	}
	return script
}

// scripted is a front-end that plays a script. Its memory files are named, so that mappings of them can be counted.
type scripted struct {
	t    *testing.T
	c    *net.UnixConn
	a, b int

	mu     sync.Mutex // vanish may come from the port's side
	closed bool
}

const scriptFile = "rscctl-script"

func newScripted(t *testing.T, socket string) *scripted {
	t.Helper()
	s := &scripted{t: t}
	for _, fd := range []*int{&s.a, &s.b} {
		var err error
		if *fd, err = unix.MemfdCreate(scriptFile, unix.MFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(*fd, scriptMem); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scripted) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	_ = s.c.Close()
	_ = unix.Close(s.a)
	_ = unix.Close(s.b)
}

// vanish takes all memory away.
func (s *scripted) vanish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, fd := range []int{s.a, s.b} {
		if err := unix.Ftruncate(fd, 0); err != nil {
			s.t.Error(err)
		}
	}
}

// play sends the script, each message once the one before was served. It returns how far it came before the back-end
// ended the connection.
func (s *scripted) play(script []step) (served int) {
	s.t.Helper()
	for i, st := range script {
		var fds []int
		for _, kind := range st.fds {
			switch kind {
			case 'A':
				fds = append(fds, s.a)
			case 'B':
				fds = append(fds, s.b)
			default:
				e, err := user.NewEventFD()
				if err != nil {
					s.t.Fatal(err)
				}
				defer e.Close()
				fds = append(fds, e.FD())
			}
		}
		b := append(message(st.request, 1, st.payload), message(user.GetFeatures, 1, nil)...)
		if _, _, err := s.c.WriteMsgUnix(b[:user.HeaderSize+len(st.payload)], unix.UnixRights(fds...), nil); err != nil {
			return i
		}
		if _, err := s.c.Write(b[user.HeaderSize+len(st.payload):]); err != nil {
			return i
		}
		for {
			var h user.Header
			_ = s.c.SetReadDeadline(time.Now().Add(patience))
			head := make([]byte, user.HeaderSize)
			if _, err := io.ReadFull(s.c, head); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					s.t.Fatalf("%s: no answer", st.request)
				}
				return i
			}
			if err := h.Decode(head); err != nil {
				s.t.Fatal(err)
			}
			if _, err := io.ReadFull(s.c, make([]byte, h.Size)); err != nil {
				return i
			}
			if h.Request == user.GetFeatures {
				break
			}
		}
	}
	return len(script)
}

// Every touch of guest memory in every handler of a message faults in turn: all memory is gone at that moment. Each time
// the connection ends with that reason, no queue runs, nothing stays mapped or open, and the next front-end is served.
func TestEveryTouchOfEveryHandlerMayFault(t *testing.T) {
	var n, at atomic.Int64
	var victim atomic.Pointer[scripted]
	p, socket, log := newPort(t, func(c *vhost.Config) {
		c.Touching(func() {
			if s := victim.Load(); n.Add(1) == at.Load() && s != nil {
				s.vanish()
			}
		})
	})
	check := bystander(t)
	script := everyHandler()
	fds := openFDs(t)
	faulted := map[user.Request]int{}
	for try := int64(1); ; try++ {
		s := newScripted(t, socket)
		n.Store(0)
		at.Store(try)
		victim.Store(s)
		served := s.play(script)
		touches := n.Load()
		victim.Store(nil)
		s.close()
		reason := <-log.stopped
		if touches < try { // the whole script, undisturbed
			if served != len(script) || !errors.Is(reason, user.ErrDisconnected) {
				t.Fatalf("%d of %d steps served: %v", served, len(script), reason)
			}
			break
		}
		what := fmt.Sprintf("touch %d", try)
		if served < len(script) {
			what += ", in " + script[served].request.String()
			faulted[script[served].request]++
		}
		if !errors.Is(reason, vhost.ErrMemoryFault) {
			t.Errorf("%s: reason %v", what, reason)
		}
		if err := nothingRuns(p); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if m := mapsOf(t, scriptFile); m != 0 {
			t.Errorf("%s: %d mappings left", what, m)
		}
		checkAlternating(t, log.take())
		closedSince(t, fds)
		again := newScripted(t, socket)
		if served := again.play(script); served != len(script) {
			t.Errorf("%s: the next front-end: %d of %d steps", what, served, len(script))
		}
		again.close()
		<-log.stopped
	}
	for _, r := range []user.Request{
		user.SetVringKick, user.AddMemReg, user.RemMemReg, user.SetMemTable, user.SetFeatures,
	} {
		if faulted[r] == 0 {
			t.Errorf("%s touched nothing", r)
		}
	}
	closedSince(t, fds)
	check()
}

// Every page of guest memory faults under every operation of the data path in turn: it is made inaccessible in the port's
// mapping, which is what an access sees that comes a moment too late. The frame in hand is lost with the port; nothing of
// it is visible where the ring says so, nothing stays mapped, and the next front-end is served.
func TestEveryPageMayFaultUnderTheDataPath(t *testing.T) {
	p, socket, log := newPort(t, withHead)
	check := bystander(t)
	page := os.Getpagesize()
	before := mapsOf(t, "memfd:rscctl-guest")
	fds := openFDs(t)
	operations := map[string]func(g *guest) error{
		"put": func(*guest) error { return put(t, p.RX(0), plain(makeFrame(9000, 1))) },
		"put without buffers": func(*guest) error {
			err := put(t, p.RX(0), plain(makeFrame(60000, 1)))
			if errors.Is(err, vhost.ErrNoBuffers) {
				return nil
			}
			return err
		},
		"poll": func(*guest) error {
			_, _, err := p.TX(0).Poll(8, func(f *vhost.TxFrame) vhost.Next {
				if !f.Whole() {
					return vhost.Leave
				}
				return vhost.TakeOn
			}, nil)
			return err
		},
		"arm and disarm": func(*guest) error {
			p.TX(0).ArmKick()
			p.TX(0).DisarmKick()
			if p.RX(0).Begin() {
				arm(p.RX(0))
				p.RX(0).Commit()
			}
			return nil
		},
	}
	faults := map[string]int{}
	for name, operation := range operations {
		for at, last := 0, page; at < last; at += page {
			func() {
				g := newGuest(t, socket, func(c *user.FrontendConfig) {
					c.RingSize, c.Indirect = 2048, 4 // pages apart: descriptors, avail, used, events
					c.Features = without(all, virtio.FEventIdx)
				}).start()
				defer func() {
					_ = g.Close()
					waitFor(t, "nothing mapped", func() bool { return mapsOf(t, "memfd:rscctl-guest") == before })
					checkAlternating(t, log.take())
				}()
				for range 4 {
					g.post(g.RX(0), true, 3000, 3000)
					g.send(g.TX(0), virtio.NetHdr{}, makeFrame(9000, 1), 100, 4096)
				}
				g.kick(g.RX(0))
				g.kick(g.TX(0))
				_, end, err := g.Alloc(1, page)
				if err != nil {
					t.Fatal(err)
				}
				start, ok := mappingOfPort(t, end)
				if !ok {
					t.Fatal("no mapping of the port's")
				}
				last = start.used
				if err := protect(start.at+uintptr(at), page, unix.PROT_NONE); err != nil {
					t.Fatal(err)
				}
				err = operation(g)
				var reason error
				if p.State().Name == vhost.StateFailed { // or else the operation does not touch this page
					reason = <-log.stopped
					faults[name]++
				}
				switch {
				case reason == nil && err != nil:
					t.Errorf("%s, page %d: %v and the connection stays", name, at/page, err)
				case reason != nil && !errors.Is(reason, vhost.ErrMemoryFault):
					t.Errorf("%s, page %d: reason %v", name, at/page, reason)
				case reason != nil:
					if err := nothingRuns(p); err != nil {
						t.Errorf("%s, page %d: %v", name, at/page, err)
					}
				default:
					if err := protect(start.at+uintptr(at), page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
						t.Error(err)
					}
					_ = g.Close()
					<-log.stopped
				}
			}()
		}
	}
	t.Logf("faults: %v", faults)
	for name := range operations {
		if faults[name] < 2 {
			t.Errorf("%s faulted %d times", name, faults[name])
		}
	}
	closedSince(t, fds)
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	check()
}

// mapsOf counts the mappings of the file of that name in this process.
func mapsOf(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	return bytes.Count(b, []byte(name))
}

// nothingRuns says which queue of a port without a front-end still does something.
func nothingRuns(p *vhost.Port) error {
	for i := range p.MaxPairs() {
		if p.RX(i).Begin() {
			p.RX(i).Commit()
			return fmt.Errorf("rx queue %d takes frames", i)
		}
		if _, _, err := p.TX(i).Poll(1, func(*vhost.TxFrame) vhost.Next { return vhost.TakeOn }, nil); !errors.Is(err, vhost.ErrNotRunning) {
			return fmt.Errorf("tx queue %d: %w", i, err)
		}
		if p.RX(i).KickFD() != -1 || p.TX(i).KickFD() != -1 {
			return fmt.Errorf("pair %d has a kick", i)
		}
	}
	if p.Pairs() != 0 {
		return fmt.Errorf("%d pairs run", p.Pairs())
	}
	return nil
}
