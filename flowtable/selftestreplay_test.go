package flowtable_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/rscctl/rscctl/controller/replay"
	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// selfCapture is a case as a capture of its wire: a packet each microsecond, pauses as they were, a FIN at the end.
func selfCapture(t *testing.T, steps []any, end pt.TCP) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(1<<18, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1700000000, 0)
	put := func(f []byte) {
		now = now.Add(time.Microsecond)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: now, CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range append(steps, end) {
		switch s := s.(type) {
		case pt.TCP:
			put(s.Frame())
		case []byte:
			put(s)
		case wait:
			now = now.Add(time.Duration(s))
		}
	}
	return &b
}

// lengths collects the payload lengths of what a guest would receive, but for the end of a case.
type lengths struct {
	end uint32
	got []string
}

// Frame implements replay.Sink.
func (l *lengths) Frame(f *replay.Frame) error {
	n := 100 // not for Read: then it is a packet alone, and how much they carry the case knows
	if p, err := pt.Read(bytes.Join(f.Frags, nil)); err == nil {
		if p.Seq == l.end {
			return nil
		}
		n = len(p.Payload)
	}
	l.got = append(l.got, fmt.Sprint(n))
	return nil
}

func TestReplayPassesTheKernelsSelftest(t *testing.T) {
	eachSelfCase(t, func(t *testing.T, c selfCase, p flowtable.Profile, b, end pt.TCP, want string) {
		opt := replay.Options{Profile: p, Hold: selfHold, Features: replay.DefaultFeatures(p == flowtable.RSC)}
		opt.Features.ECN = c.set != nil // the only thing that a case of the self-test sets
		sink := lengths{end: end.Seq}
		sum, err := replay.Run(t.Context(), selfCapture(t, c.in(b), end), opt, &sink)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(sink.got, ","); got != want {
			t.Errorf("got %s, want %s: %v", got, want, sum.Reasons)
		}
	})
}
