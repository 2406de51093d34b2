package vm

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/wire"
)

// wireJudge checks every frame that a side receives, while traffic runs.
type wireJudge struct {
	lab     *lab
	capture *netnstest.Capture
	stop    atomic.Bool
	done    chan struct{}

	frames, checked, payload int
	longest                  int // bytes of a frame
	bad                      int
	examples                 []string
}

// judge starts watching what the sender's side receives. Result ends it. Meanwhile the host's interface has no offloads, so that all frames are as on a
// cable: a veth with offloads passes on whole what a NIC would cut and sum.
func (l *lab) judge(t *testing.T) *wireJudge {
	t.Helper()
	l.b.SetOffload(t, netdev.TxChecksum, false)
	j := &wireJudge{lab: l, capture: l.a.Capture(t), done: make(chan struct{})}
	go func() {
		defer close(j.done)
		for {
			f, ok := j.capture.Poll(200 * time.Millisecond)
			if ok {
				j.see(f)
			} else if j.stop.Load() { // silence, after the traffic has ended
				return
			}
		}
	}()
	return j
}

func (j *wireJudge) see(f netnstest.Frame) {
	j.frames++
	j.longest = max(j.longest, len(f.Data))
	kind, err := wire.Check(f.Data, header+j.lab.mtu)
	if err == nil && f.Partial {
		err = fmt.Errorf("the checksum is left to a receiver's offload: %w", wire.ErrChecksum)
	}
	if kind.Checked {
		j.checked++
		j.payload += kind.Payload
	}
	if err != nil {
		j.bad++
		if len(j.examples) < 3 {
			j.examples = append(j.examples, fmt.Sprintf("%v: % x", err, f.Data[:min(len(f.Data), 80)]))
		}
	}
}

// result ends the watch and fails the test for bad frames, and for having seen too few: payload is what must have come.
func (j *wireJudge) result(t *testing.T, payload int64) {
	t.Helper()
	j.stop.Store(true)
	<-j.done
	j.lab.b.SetOffload(t, netdev.TxChecksum, true)
	j.lab.b.SetOffload(t, "tso", true) // went with it
	lost := j.capture.Dropped()
	t.Logf("wire: %d frames, %d with checksums verified, %d not read in time", j.frames, j.checked, lost)
	for _, e := range j.examples {
		t.Errorf("bad frame on the wire (%d in all): %s", j.bad, e)
	}
	if lost == 0 && int64(j.payload) < payload {
		t.Errorf("saw %d bytes of payload on the wire, %d were sent", j.payload, payload)
	}
	if int(lost) > j.frames/10 {
		t.Errorf("%d of %d frames were not looked at", lost, j.frames+int(lost))
	}
}
