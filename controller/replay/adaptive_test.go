package replay

import (
	"bytes"
	"testing"
	"time"

	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A hold adapts to a capture as to a VM's packets, and always in the same way.
func TestAnAdaptiveHoldOverACapture(t *testing.T) {
	// Forty flows that take turns, a packet each 2 us: with 50 us there is nothing to merge.
	var flows [40]pt.TCP
	for i := range flows {
		flows[i] = pt.TCP{Len: 600, SrcPort: uint16(1000 + i)}
	}
	var list []arrival
	for n := range 40_000 {
		f := &flows[n%len(flows)]
		list = append(list, arrival{at: int64(n) * 2000, frame: f.Frame()})
		*f = f.Next()
	}
	frames := func(opt Options) (uint64, string) {
		var out bytes.Buffer
		sum, err := Run(t.Context(), bytes.NewReader(nanoPcap(list)), opt, NewJSONSink(&out))
		if err != nil || sum.Packets != 40_000 {
			t.Fatalf("%+v, %v", sum, err)
		}
		return sum.Frames, out.String()
	}
	opt := Options{Hold: 10 * time.Millisecond, Adaptive: true, Features: DefaultFeatures(false)}
	got, text := frames(opt)
	if fixed, _ := frames(Options{Hold: DefaultHold, Features: DefaultFeatures(false)}); got*4 > fixed {
		t.Errorf("%d frames, %d with a hold of %v", got, fixed, DefaultHold)
	}
	if _, again := frames(opt); again != text {
		t.Error("the same capture gave other frames")
	}
}
