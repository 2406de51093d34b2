package flowtable_test

import (
	"fmt"
	"runtime/debug"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// raceEnabled: under the race detector allocations are not those of the product.
var raceEnabled = func() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" {
			return true
		}
	}
	return false
}()

// The data path allocates nothing, whatever the packets are: random traffic, hostile too, through both profiles.
func TestTableDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
		for _, hold := range []time.Duration{0, 50 * time.Microsecond} {
			t.Run(fmt.Sprintf("%v hold %v", p, hold), func(t *testing.T) {
				table, err := flowtable.New(flowtable.Config{Slots: 16, Ports: 1}, deliver(func(*flowtable.Superframe) {}))
				if err != nil {
					t.Fatal(err)
				}
				c := negotiated(p)
				c.Hold = hold
				if err := table.SetPort(0, c, 0); err != nil {
					t.Fatal(err)
				}
				var frames [][]byte
				d := pt.TCP{Len: 1448, Opts: pt.Timestamps(1, 2)}.Train(40)
				d[10].BadTCP, d[15].Flags, d[20].Win, d[25].MF, d[30].Doff = true, pt.ACK|pt.PSH, 9, true, 4
				d[35].Flags = pt.SYN
				frames = append(frames, pt.Frames(d...)...)
				frames = append(frames, pt.ARP(), pt.UDP{Len: 5}.Frame(), nil, frames[3][:30])
				for _, q := range d {
					q.V6, q.SrcPort = true, q.SrcPort+uint16(q.Seq%20) // more flows than slots
					frames = append(frames, q.Frame())
				}
				scratch := make([][]byte, len(frames))
				for i := range frames {
					scratch[i] = make([]byte, len(frames[i]))
				}
				now := int64(0)
				var q flowtable.Packet // one for all, as a caller has it
				tail := make([]flowtable.Fragment, 1)
				run := func() {
					for i := range frames {
						copy(scratch[i], frames[i])
						q = flowtable.Packet{Data: scratch[i], Ref: uint64(i)}
						packet.Parse(q.Data, &q.Info)
						if n := int(q.Info.Payload); n > 0 && i%3 == 0 {
							tail[0] = flowtable.Fragment{Data: q.Data[n:], Ref: uint64(i)}
							q.Data, q.Tail = q.Data[:n:n], tail
						}
						now += 1000
						table.Add(&q, now)
						if i%32 == 0 {
							table.EndBurst(now)
							table.NextDeadline()
						}
					}
					table.ClearPort(0, flowtable.ReasonStop, now)
				}
				if n := testing.AllocsPerRun(20, run); n != 0 {
					t.Errorf("%v allocations for %d packets", n, len(frames))
				}
			})
		}
	}
}

func TestSegmenterDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	f := pt.TCP{Len: 60000, Opts: pt.Timestamps(1, 2), Partial: true}.Frame()
	frags := [][]byte{f[:100], f[100:5000], f[5000:]}
	var s flowtable.Segmenter
	dst := make([]byte, 2048)
	if n := testing.AllocsPerRun(20, func() {
		if err := s.Init(frags, flowtable.GSO{Type: tcpv4, Size: 1448}); err != nil {
			t.Fatal(err)
		}
		for {
			if _, ok, err := s.Next(dst); err != nil || !ok {
				break
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
