package datapath

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// rig is a worker with a fake NIC. Its step is called by the test, at times that the test says, so nothing depends on the
// machine; Start gives it a goroutine in the tests that are about that.
type rig struct {
	tb      testing.TB
	nic     *fakeNIC
	w       *Worker
	now     atomic.Int64
	trouble atomic.Int64
	log     lockedBuffer
}

// lockedBuffer collects what a worker logs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var _ io.Writer = (*lockedBuffer)(nil)

func newRig(tb testing.TB, edits ...func(*Config)) *rig {
	tb.Helper()
	r := &rig{tb: tb}
	cfg := Config{
		ID: 3, MTU: 1500, WakeFD: -1, Chunks: 2048, Slots: 64, Log: slog.New(slog.NewTextHandler(&r.log, nil)),
		Clock: func() int64 { return r.now.Load() }, Trouble: func() { r.trouble.Add(1) },
	}
	for _, e := range edits {
		e(&cfg)
	}
	r.nic = newFakeNIC(tb, cfg.Chunks)
	cfg.NIC = r.nic
	w, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	r.w = w
	r.nic.Refill() // as run does
	return r
}

func (r *rig) advance(d time.Duration) { r.now.Add(int64(d)) }

// macOf is the address of the VM with an index.
func macOf(index uint32) [6]byte { return [6]byte{2, 0, 0, 0, 1, byte(index)} }

// rules merge all that may be merged, at the end of the burst.
func rules(edits ...func(*flowtable.PortConfig)) flowtable.PortConfig {
	c := flowtable.DefaultPortConfig()
	c.Hold, c.GuestCsum, c.TSO4, c.TSO6 = 0, true, true, true
	for _, e := range edits {
		e(&c)
	}
	return c
}

// vm adds a VM and starts it with a fake guest that takes all.
func (r *rig) vm(index uint32, edits ...func(*PortConfig)) *fakeGuest {
	r.tb.Helper()
	cfg := PortConfig{Index: index, Addr: Addr{MAC: macOf(index)}}
	for _, e := range edits {
		e(&cfg)
	}
	r.addPort(cfg)
	return r.start(index, rules())
}

// start starts a VM that was added.
func (r *rig) start(index uint32, c flowtable.PortConfig, sources ...Source) *fakeGuest {
	r.tb.Helper()
	g := r.newGuest()
	if err := r.w.startPort(index, g, sources, c); err != nil {
		r.tb.Fatal(err)
	}
	return g
}

// to is a TCP packet for a VM, without padding, with id in its payload.
func to(index uint32, n int) pt.TCP {
	return pt.TCP{DstMAC: macOf(index), Len: n, Opts: pt.Timestamps(7, 8)}
}

// inject receives frames without metadata.
func (r *rig) inject(frames ...[]byte) {
	r.tb.Helper()
	for _, f := range frames {
		if !r.nic.inject(f, nil) {
			r.tb.Fatal("no chunk to receive into")
		}
	}
}

// step lets the worker do one burst, and checks that every chunk is somewhere and every packet is explained.
func (r *rig) step() bool {
	r.tb.Helper()
	did := r.w.step()
	r.check()
	return did
}

func (r *rig) check() {
	r.tb.Helper()
	if err := r.books(); err != nil {
		r.tb.Fatal(err)
	}
}

// books says what is wrong with the worker's accounts, as far as they can be compared with what lies where.
func (r *rig) books() error {
	if err := r.nic.conserved(r.w); err != nil {
		return err
	}
	held := uint64(0)
	for _, p := range r.w.list {
		l := p.ledger
		if n := l.Unexplained(); n != 0 {
			return fmt.Errorf("port %d: %d packets unexplained: %+v", p.Index, n, *l)
		}
		queued := uint64(0)
		for i := range p.out.n {
			queued += uint64(p.out.at(i).entry.Packets)
		}
		if queued != l.Queued {
			return fmt.Errorf("port %d: %d packets in the queue, %d in the ledger", p.Index, queued, l.Queued)
		}
		if (p.out.n > 0 || p.held > 0) && !p.dirty {
			return fmt.Errorf("port %d: waits, and nobody will turn to it", p.Index)
		}
		held += l.Held
	}
	if int(held) != r.w.table.Held() {
		return fmt.Errorf("%d packets in the table, %d in the ledgers", r.w.table.Held(), held)
	}
	return nil
}

// hungry is how many guests have no room.
func (r *rig) hungry() (n int) {
	for _, p := range r.w.list {
		if p.hungry {
			n++
		}
	}
	return n
}

func (r *rig) ledger(index uint32) *flowtable.Ledger { return r.w.table.Ledger(index) }

// dropped compares the packets dropped of a port with those wanted.
func (r *rig) dropped(index uint32, want map[flowtable.Reason]uint64) {
	r.tb.Helper()
	compareReasons(r.tb, "dropped", &r.ledger(index).Dropped, want)
}

func (r *rig) passed(index uint32, want map[flowtable.Reason]uint64) {
	r.tb.Helper()
	compareReasons(r.tb, "passed", &r.ledger(index).Passed, want)
}

func compareReasons(tb testing.TB, what string, got *[flowtable.NumReasons]uint64, want map[flowtable.Reason]uint64) {
	tb.Helper()
	for i, n := range got {
		if reason := flowtable.Reason(i); n != want[reason] {
			tb.Errorf("%s: %d packets for %s, want %d", what, n, reason, want[reason])
		}
	}
}

type byReason = map[flowtable.Reason]uint64

func parse(frame []byte) (i packet.Info) {
	packet.Parse(frame, &i)
	return i
}

// cutAgain gives back the packets that a frame was made of.
func cutAgain(r *received, fixedID bool) ([][]byte, error) {
	if r.hdr.GSOType == 0 {
		return [][]byte{r.data}, nil
	}
	var s flowtable.Segmenter
	gso := flowtable.GSO{Type: r.hdr.GSOType, Size: r.hdr.GSOSize, FixedID: fixedID}
	if err := s.Init([][]byte{r.data}, gso); err != nil {
		return nil, err
	}
	var out [][]byte
	for {
		b := make([]byte, s.HeaderLen()+int(r.hdr.GSOSize))
		n, ok, err := s.Next(b)
		if err != nil || !ok {
			return out, err
		}
		out = append(out, b[:n])
	}
}

// packets compares the packets in what a guest got with those wanted, in their order.
func packets(tb testing.TB, got []received, want ...[]byte) {
	tb.Helper()
	var all [][]byte
	for i := range got {
		cut, err := cutAgain(&got[i], false)
		if err != nil {
			tb.Fatalf("frame %d of %d bytes: %v", i, len(got[i].data), err)
		}
		all = append(all, cut...)
	}
	if len(all) != len(want) {
		tb.Fatalf("%d packets, want %d", len(all), len(want))
	}
	for i := range all {
		if !bytes.Equal(all[i], want[i]) {
			tb.Fatalf("packet %d of %d differs:\n got %x\nwant %x", i, len(all), head(all[i]), head(want[i]))
		}
	}
}

func head(b []byte) []byte { return b[:min(len(b), 80)] }

// frames are the packets of a train, built.
func train(p pt.TCP, n int) [][]byte { return pt.Frames(p.Train(n)...) }

func (r *rig) addPort(cfg PortConfig) {
	r.tb.Helper()
	if err := r.w.addPort(cfg); err != nil {
		r.tb.Fatal(err)
	}
}

// shortQueue gives a VM an output queue of n places, a power of two: it is full now and then, and each place is used often.
func (r *rig) shortQueue(index uint32, n int) {
	r.w.ports[index].out.frames, r.w.ports[index].out.most = make([]outFrame, n), n
}
