package report

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
)

// twoQueues is an uplink whose VM 1 has frames on both queues, and VM 2 on none.
func twoQueues() *Snapshot {
	queue := func(id int, n uint64) Queue {
		s := &datapath.Snapshot{
			ID: id, Chunks: 8192, HeldSlots: 3, HeldRefs: 40, CPU: 7 * int64(n), Counters: datapath.QueueCounters{RxFrames: 100 * n, WithMeta: 100 * n, Unknown: n},
			Kernel: xsk.Stats{RxDropped: n, RxInvalid: 2 * n, TxInvalid: 3 * n, RxRingFull: 4 * n, FillEmpty: 5 * n},
			Ports:  []datapath.PortSnapshot{{Index: 1, Running: true}, {Index: 2}},
		}
		l := &s.Ports[0].Ledger
		l.In, l.InBytes, l.Refused, l.Held, l.Queued = 50*n, 5000*n, n, 2*n, 3*n
		l.Merged, l.Superframes = 40*n, 4*n
		l.Passed[flowtable.ReasonPartialChecksum] = 5 * n
		l.Dropped[flowtable.ReasonPortDown] = n
		s.Ports[0].Counters = datapath.PortCounters{Local: n, TxFrames: 7 * n}
		s.Ports[0].Counters.FrameSizes[1] = n
		return Queue{ID: id, Seen: s}
	}
	return &Snapshot{Uplinks: []Uplink{{
		Name: "eth1", Index: 7, MTU: 1500, Up: true, Carrier: true, XDPMode: api.XDPNative, ChunkSize: 2048, Outcomes: map[string]uint64{"redirect": 300},
		Remedy: "run 'ethtool -K eth1 tx off'", Queues: []Queue{queue(0, 1), queue(1, 2)},
		VMs: []VM{{Index: 1, Port: api.Port{VM: "web"}, Interrupts: 9, TxDropped: map[string]uint64{"too_short": 1, "too_long": 0}}, {Index: 2, Port: api.Port{VM: "db"}}},
	}}}
}

// A VM's counters are the sums of what each worker counted for it, and add up.
func TestAVMsCountersAreSummedOverTheQueues(t *testing.T) {
	st := Stats(twoQueues(), "")
	if len(st.VMs) != 2 || st.VMs[0].VM != "web" || st.VMs[1].VM != "db" {
		t.Fatalf("VMs %+v", st.VMs)
	}
	v := st.VMs[0]
	if v.RxPackets != 153 || v.RxBytes != 15000 || v.MergedPackets != 120 || v.Superframes != 12 || v.Held != 15 || v.LocalFrames != 3 || v.TxFrames != 21 || v.Interrupts != 9 {
		t.Errorf("%+v", v)
	}
	if v.Passed["partial_checksum"] != 15 || v.Dropped["port_down"] != 3 || len(v.Sealed) != 0 || v.TxDropped["too_short"] != 1 || len(v.TxDropped) != 1 {
		t.Errorf("passed %v, dropped %v, sealed %v, not sent %v", v.Passed, v.Dropped, v.Sealed, v.TxDropped)
	}
	sum := v.MergedPackets + v.Passed["partial_checksum"] + v.Dropped["port_down"] + v.Held
	if sum != v.RxPackets || v.Unexplained != 0 || st.Unexplained != 0 {
		t.Errorf("%d packets of %d are explained; unexplained %d, in all %d", sum, v.RxPackets, v.Unexplained, st.Unexplained)
	}
	if v.FrameBytes[1] != (api.Bucket{Le: 1514, Count: 3}) || v.FrameBytes[len(v.FrameBytes)-1].Le != 0 {
		t.Errorf("sizes %v", v.FrameBytes)
	}
	if st.Outcomes["redirect"] != 300 {
		t.Errorf("outcomes %v", st.Outcomes)
	}
	q := st.Queues["eth1/1"]
	if q.RxFrames != 200 || q.RxUnknown != 2 || q.RxTooLong != 2 || q.RxInvalid != 4 || q.TxInvalid != 6 || q.RxRingFull != 8 || q.RxFillEmpty != 10 || q.Held != 40 || q.CPUNS != 14 || q.OpenSlots != 3 {
		t.Errorf("queue %+v", q)
	}
}

// One lost packet of one VM on one queue is seen in its statistics and in the sum.
func TestALostPacketIsUnexplained(t *testing.T) {
	s := twoQueues()
	s.Uplinks[0].Queues[1].Seen.Ports[0].Ledger.In++
	if st := Stats(s, ""); st.VMs[0].Unexplained != 1 || st.VMs[1].Unexplained != 0 || st.Unexplained != 1 {
		t.Errorf("unexplained: %d, %d, in all %d", st.VMs[0].Unexplained, st.VMs[1].Unexplained, st.Unexplained)
	}
}

func TestStatsOfOneVM(t *testing.T) {
	if st := Stats(twoQueues(), "db"); len(st.VMs) != 1 || st.VMs[0].VM != "db" || len(st.Queues) != 2 {
		t.Errorf("%+v", st)
	}
}

// Before the first frame nobody knows whether XDP's description arrives with the frames.
func TestMetadataIsUnknownBeforeTheFirstFrame(t *testing.T) {
	s := twoQueues()
	if i := Interfaces(s)[0]; i.Metadata == nil || !*i.Metadata {
		t.Errorf("with metadata: %v", i.Metadata)
	}
	for i := range s.Uplinks[0].Queues {
		s.Uplinks[0].Queues[i].Seen.Counters.WithMeta = 0
	}
	if i := Interfaces(s)[0]; i.Metadata == nil || *i.Metadata {
		t.Errorf("without: %v", i.Metadata)
	}
	for i := range s.Uplinks[0].Queues {
		s.Uplinks[0].Queues[i].Seen.Counters.RxFrames = 0
	}
	if i := Interfaces(s)[0]; i.Metadata != nil {
		t.Errorf("before the first frame: %v", *i.Metadata)
	}
}

// What XDP drops in front of a queue, where a VM has its share of the room, is the VM's and the queue's loss, also of what a process before
// this one has counted.
func TestWhatASharePreventsIsShown(t *testing.T) {
	s := twoQueues()
	u := &s.Uplinks[0]
	at := u.VMs[0].Index
	for i := range u.Queues {
		u.Queues[i].Refused, u.Queues[i].RefusedOf[at] = 10, uint64(3+i)
	}
	u.VMs[0].Before = &api.VMStats{RxShare: 5}
	st := Stats(s, u.VMs[0].Port.VM)
	if n := st.VMs[0].RxShare; n != 7 {
		t.Errorf("of the VM %d, want 3 and 4", n)
	}
	for name, q := range st.Queues {
		if q.RxShare != 10 || q.Lost() < 10 {
			t.Errorf("%s: %d, lost %d", name, q.RxShare, q.Lost())
		}
	}
}

// A worker that does not answer, or has ended, is shown as such; all else is still shown.
func TestAWorkerThatDoesNotAnswerIsShown(t *testing.T) {
	s := twoQueues()
	s.Uplinks[0].Queues[0] = Queue{ID: 0, Err: fmt.Errorf("worker 0: %w", datapath.ErrStuck), Hangs: 1, HangPassed: 9}
	i := Interfaces(s)[0]
	if i.Queues[0].Worker != api.WorkerStuck || i.Queues[1].Worker != api.WorkerRunning || i.Queues[1].RxFrames != 200 {
		t.Errorf("queues %+v", i.Queues)
	}
	if q := i.Queues[0]; q.Hangs != 1 || q.HangPassed != 9 {
		t.Errorf("what XDP knows of it: %+v", q)
	}
	if len(i.Warnings) != 1 || !strings.Contains(i.Warnings[0], "queue 0 of eth1") {
		t.Errorf("warnings %q", i.Warnings)
	}
	if v := Stats(s, "web").VMs[0]; v.RxPackets != 102 {
		t.Errorf("the other queue's packets: %d", v.RxPackets)
	}
	s.Uplinks[0].Queues[0].Err = errors.New("worker 0: internal fault")
	if i := Interfaces(s)[0]; i.Queues[0].Worker != api.WorkerFailed {
		t.Errorf("a worker that has ended is %s", i.Queues[0].Worker)
	}
}

// Partial checksums are a warning at the VM that they were for, with the remedy.
func TestPartialChecksumsAreAWarning(t *testing.T) {
	s := twoQueues()
	ports := Interfaces(s)[0].Ports
	if len(ports[0].Warnings) != 1 || !strings.Contains(ports[0].Warnings[0], "15 frames for VM web") || !strings.Contains(ports[0].Warnings[0], "ethtool -K eth1") {
		t.Errorf("warnings %q", ports[0].Warnings)
	}
	if len(ports[1].Warnings) != 0 {
		t.Errorf("of the other VM: %q", ports[1].Warnings)
	}
}

// The JSON has lists where there is nothing, not nulls, and a report changes nothing of the snapshot.
func TestNothingIsAnEmptyList(t *testing.T) {
	s := twoQueues()
	for range 2 {
		i := Interfaces(s)[0]
		if i.Changes == nil || i.Warnings == nil || i.Ports[1].Warnings == nil || len(i.Ports[0].Warnings) != 1 {
			t.Errorf("%+v", i)
		}
	}
	if st := Stats(&Snapshot{}, ""); st.VMs == nil || st.Queues == nil || st.Outcomes == nil {
		t.Errorf("%+v", st)
	}
}
