package top

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var start = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// world is a made-up controller whose counters grow by what the test says.
type world struct {
	at     time.Time
	status api.Status
	stats  api.Stats
}

func good() api.Health { return api.Health{State: api.HealthGood, Reasons: []string{}} }

// newWorld has VMs of these names on eth0 with two queues.
func newWorld(vms ...string) *world {
	w := &world{at: start, status: api.Status{PID: 4711, Version: "v1.2.3", StartedAt: start.Add(-time.Hour), Health: good(), Interfaces: []api.Interface{{Name: "eth0", Health: good()}}}}
	w.stats.Queues = map[string]api.Queue{}
	for _, name := range []string{"eth0/0", "eth0/1"} {
		w.stats.Queues[name] = api.Queue{Worker: api.WorkerRunning, Health: good(), Chunks: 8192}
	}
	for _, vm := range vms {
		w.status.Interfaces[0].Ports = append(w.status.Interfaces[0].Ports, api.Port{VM: vm, State: api.PortRunning, Health: good()})
		w.stats.VMs = append(w.stats.VMs, api.VMStats{
			VM: vm, Iface: "eth0", Sealed: map[string]uint64{}, Passed: map[string]uint64{}, Dropped: map[string]uint64{}, TxDropped: map[string]uint64{},
			FrameBytes: []api.Bucket{{Le: 65549}, {}}, HoldNS: []api.Bucket{{Le: 50000}, {}},
		})
	}
	return w
}

// look is a look at the world as it is now, of which nothing changes later.
func (w *world) look() Look {
	status, stats := w.status, w.stats
	stats.VMs, stats.Queues = nil, maps.Clone(w.stats.Queues)
	for _, v := range w.stats.VMs {
		v.Sealed, v.Passed, v.Dropped, v.TxDropped = maps.Clone(v.Sealed), maps.Clone(v.Passed), maps.Clone(v.Dropped), maps.Clone(v.TxDropped)
		v.FrameBytes, v.HoldNS = append([]api.Bucket(nil), v.FrameBytes...), append([]api.Bucket(nil), v.HoldNS...)
		stats.VMs = append(stats.VMs, v)
	}
	return Look{At: w.at, Status: &status, Stats: &stats}
}

// bulk is n superframes of 45 segments for a VM, each of which waited 20 us.
func (w *world) bulk(vm int, n uint64) {
	v := &w.stats.VMs[vm]
	v.RxPackets += 45 * n
	v.RxBytes += 45 * 1514 * n
	v.MergedPackets += 45 * n
	v.Superframes += n
	v.GuestFrames += n
	v.Sealed["max_bytes"] += n
	v.FrameBytes[0].Count += n
	v.HoldNS[0].Count += n
	v.HoldNSSum += 20000 * n
}

// worked is CPU time and frames of a queue.
func (w *world) worked(name string, cpu time.Duration, frames, lost uint64) {
	q := w.stats.Queues[name]
	q.CPUNS += uint64(cpu)
	q.RxFrames += frames
	q.RxRingFull += lost
	w.stats.Queues[name] = q
}

// busy has seen 30 s of a host on which much goes on.
func busyModel(o Options) (*Model, *world) {
	names := []string{"web1", "web2", "db1", "db-replica-with-a-long-name", "mail", "build-7"}
	w := newWorld(names...)
	w.status.Waiting = []api.Waiting{{VM: "old", Iface: "eth0", Cause: "tap vnet9: no such device"}}
	w.status.Interfaces[0].Ports[4].State = api.PortWaiting
	w.status.Interfaces[0].Ports[4].Health = api.Health{State: api.HealthDown, Reasons: []string{"no front-end is connected to /run/rscctl/mail.sock: start the VM with it"}}
	w.status.Interfaces[0].Ports[1].Health = api.Health{State: api.HealthDegraded, Reasons: []string{"20 frames for VM web2 came with partial checksums"}}
	w.status.Health = api.Health{State: api.HealthDegraded, Reasons: []string{"a", "b", "c"}}
	m := New(o)
	for i := range 31 {
		m.See(w.look())
		w.at = w.at.Add(time.Second)
		w.bulk(0, uint64(1000+900*(i%5)))
		w.bulk(2, uint64(300*(i%3)))
		w.stats.VMs[0].Passed["pure_ack"] += 40
		w.stats.VMs[0].RxPackets += 40
		w.stats.VMs[0].FrameBytes[0].Count += 40
		w.stats.VMs[2].Sealed["psh"] += 500
		w.stats.VMs[0].Dropped["guest_no_buffers"] += 7
		w.stats.VMs[0].TxBytes += 125000
		w.worked("eth0/0", time.Duration(i)*30*time.Millisecond, 45000, uint64(i%4/3*12))
		w.worked("eth0/1", 12*time.Millisecond, 700, 0)
	}
	return m, w
}

// text of a screen, with its frame, so that blanks at the end of a line are seen.
func text(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "|%s|\n", l)
	}
	return b.String()
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text {
		t.Errorf("%s differs.\ngot:\n%s\nwant:\n%s", path, text, want)
	}
}
