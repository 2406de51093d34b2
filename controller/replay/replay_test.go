package replay

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// ledger is a sink that holds what is true of every replay: each packet leaves exactly once and time does not run back.
type ledger struct {
	t      testing.TB
	left   map[uint64]bool
	frames uint64
	bytes  uint64
	last   int64
}

func (l *ledger) Frame(f *Frame) error {
	if l.left == nil {
		l.left = map[uint64]bool{}
	}
	if f.TS < l.last {
		l.t.Errorf("frame %d left at %d, the one before at %d", l.frames, f.TS, l.last)
	}
	l.last = f.TS
	n := 0
	for _, frag := range f.Frags {
		n += len(frag)
	}
	if n != f.Len {
		l.t.Errorf("frame %d has %d bytes, says %d", l.frames, n, f.Len)
	}
	if f.Segments > len(f.Packets) || len(f.Packets) == 0 {
		l.t.Errorf("frame %d: %d segments in %d packets", l.frames, f.Segments, len(f.Packets))
	}
	for _, p := range f.Packets {
		if l.left[p] {
			l.t.Errorf("packet %d left twice", p)
		}
		l.left[p] = true
	}
	l.frames++
	l.bytes += uint64(n)
	return nil
}

// close compares the ledger with the summary.
func (l *ledger) close(sum *Summary) {
	l.t.Helper()
	if uint64(len(l.left))+sum.Dropped != sum.Packets {
		l.t.Errorf("%d of %d packets left, %d were dropped", len(l.left), sum.Packets, sum.Dropped)
	}
	if l.frames != sum.Frames || l.bytes != sum.Bytes {
		l.t.Errorf("%d frames with %d bytes left, the summary says %d with %d", l.frames, l.bytes, sum.Frames, sum.Bytes)
	}
	explained := sum.Merged
	for _, n := range sum.Reasons {
		explained += n
	}
	if explained != sum.Packets {
		l.t.Errorf("%d packets are explained: %d merged and %v; want %d", explained, sum.Merged, sum.Reasons, sum.Packets)
	}
}

func TestGoldenScenarios(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			path := filepath.Join("testdata", sc.name)
			in := sc.input()
			compare(t, path+".in.pcap", in)
			var out, lines bytes.Buffer
			pcap, err := NewPcapSink(&out)
			if err != nil {
				t.Fatal(err)
			}
			l := &ledger{t: t}
			sum, err := Run(context.Background(), bytes.NewReader(in), sc.opt, NewJSONSink(&lines), pcap, l)
			if (err != nil) != sc.fails {
				t.Fatalf("got %v", err)
			}
			l.close(sum)
			if err := sum.WriteJSON(&lines); err != nil {
				t.Fatal(err)
			}
			compare(t, path+".json", lines.Bytes())
			compare(t, path+".out.pcap", out.Bytes())
		})
	}
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got\n%.2000s\nwant\n%.2000s", path, got, want)
	}
}

// endless makes a capture of n packets without ever holding it.
type endless struct {
	n    int
	next seg
	buf  []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.buf) == 0 {
		if e.n == 0 {
			return 0, io.EOF
		}
		if e.next.seq == 0 {
			e.buf = pcapFile(le, 0xa1b23c4d, 1)
		}
		e.n--
		f := e.next.frame()
		e.buf = append(e.buf, pcapRecord(le, e.next.seq/1e6, e.next.seq%1e6*1000, len(f), f)...)
		e.next.seq += uint32(e.next.n)
		e.next.id++
	}
	n := copy(p, e.buf)
	e.buf = e.buf[n:]
	return n, nil
}

func TestMemoryDoesNotGrowWithTheCapture(t *testing.T) {
	measure := func(packets int) uint64 {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		live := uint64(0)
		src := &endless{n: packets, next: seg{n: 100}}
		probe := sinkFunc(func(*Frame) error {
			if src.n == 0 && live == 0 {
				runtime.GC()
				runtime.ReadMemStats(&after)
				live = after.HeapAlloc
			}
			return nil
		})
		if _, err := Run(context.Background(), src, gro(DefaultHold), probe); err != nil {
			t.Fatal(err)
		}
		return live - min(live, before.HeapAlloc)
	}
	small, large := measure(5_000), measure(100_000)
	if large > small+1<<20 {
		t.Errorf("%d bytes live after 5,000 packets, %d after 100,000", small, large)
	}
}

type sinkFunc func(*Frame) error

func (f sinkFunc) Frame(fr *Frame) error { return f(fr) }

func TestAFailingOutputEndsTheReplay(t *testing.T) {
	full := errors.New("no space left")
	calls := 0
	sum, err := Run(context.Background(), &endless{n: 10_000, next: seg{n: 100}}, gro(0), sinkFunc(func(*Frame) error {
		calls++
		return full
	}))
	if !errors.Is(err, ErrOutput) || !errors.Is(err, full) || sum.Error == nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestAnEndedContextEndsTheReplay(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(ctx, &endless{n: 10, next: seg{n: 1}}, gro(0)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestALongHoldIsBoundedByPressure(t *testing.T) {
	var list []arrival
	for i := range 3000 { // each flow holds one packet
		list = append(list, one(int64(i), seg{port: uint16(i), seq: 1, n: 60})...)
	}
	in := nanoPcap(list)
	in = append(in, bytes.Repeat(in[24:], 3)...) // retransmissions of them all; time runs back, so the clock stands
	l := &ledger{t: t}
	sum, err := Run(context.Background(), bytes.NewReader(in), gro(MaxHold), l)
	if err != nil {
		t.Fatal(err)
	}
	l.close(sum)
}
