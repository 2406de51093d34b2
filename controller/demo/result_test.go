package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

func TestResultHasTheFieldsOfTheContract(t *testing.T) {
	b, err := json.Marshal(Result{})
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]any
	if err := json.Unmarshal(b, &top); err != nil {
		t.Fatal(err)
	}
	same(t, "result", top, "schema kernel xdp_mode xsk_mode congestion_control off off_guest_gro on on_guest_gro quota speedup guest_cpu guest_cpu_with_guest_gro data_match")
	mode := top["on"].(map[string]any)
	same(t, "mode", mode, "gbps wire_frames guest_frames mean_guest_frame_bytes segments_per_frame retransmits drops controller_wakeups cpu_seconds_per_gb reasons")
	same(t, "cpu", mode["cpu_seconds_per_gb"].(map[string]any), "sender kernel controller guest total")

	var out bytes.Buffer
	if err := writeFailure(&out, errors.New("no")); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != `{"schema":2,"error":"no"}`+"\n" {
		t.Errorf("failure %q", got)
	}
}

func same(t *testing.T, what string, got map[string]any, want string) {
	t.Helper()
	g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(strings.Fields(want)))
	if !slices.Equal(g, w) {
		t.Errorf("%s has %v, want %v", what, g, w)
	}
}

func TestMedianIsOneWholeRound(t *testing.T) {
	rounds := []Mode{{Gbps: 3, GuestFrames: 30}, {Gbps: 1, GuestFrames: 10}, {Gbps: 2, GuestFrames: 20}}
	m := median(rounds)
	if m.Gbps != 2 || m.GuestFrames != 20 || !slices.Equal(m.AllGbps, []float64{3, 1, 2}) {
		t.Errorf("median %+v", m)
	}
	if rounds[0].Gbps != 3 {
		t.Error("the rounds were sorted in place")
	}
	if m := median(rounds[:2]); m.Gbps != 1 {
		t.Errorf("median of two %+v", m)
	}
}

func TestRoundIsTheDifferenceOfTwoViews(t *testing.T) {
	at := func(n uint64) view {
		d := time.Duration(n)
		return view{
			guest: &snapshot{
				Clock: d * time.Second, CPU: d * 300 * time.Millisecond, Received: int64(n) * 1e9, Packets: n * 90,
				NIC:   nicCounters{RxPackets: n * 100, RxBytes: n * 4_000_000},
				Guest: stackguest.Stats{DataFrames: n * 100, Segments: n * 2500},
			},
			control: &snapshot{CPU: d * 200 * time.Millisecond, Sleeps: n * 11},
			sender:  &snapshot{Retrans: n * 7, CPU: d * 400 * time.Millisecond},
			busy:    d * 1500 * time.Millisecond, kernel: threads{"14": d * 50 * time.Millisecond}, lost: n * 3,
			stats: &api.VMStats{RxPackets: n * 2600, Sealed: map[string]uint64{"psh": n * 60, "rst": 4},
				Passed: map[string]uint64{"pure_ack": n * 5, "psh": n}, Dropped: map[string]uint64{"guest_no_buffers": n * 2}},
		}
	}
	m := difference(at(2), at(4), false)
	want := Mode{Gbps: 8, WireFrames: 5200, GuestFrames: 200, MeanBytes: 40000, Segments: 25, Retransmits: 14,
		Drops: 10, Wakeups: 22, CPU: CPU{Sender: 0.4, Kernel: 0.05, Controller: 0.2, Guest: 0.3, Total: 1.5}, StackPackets: 180}
	if got := m.Reasons; !maps.Equal(got, map[string]uint64{"psh": 122, "pure_ack": 10, "guest_no_buffers": 4}) {
		t.Errorf("reasons %v", got)
	}
	m.Reasons = nil
	a, _ := json.Marshal(m)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) || m.StackPackets != want.StackPackets {
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

func TestARoundOfWhatTheGuestSends(t *testing.T) {
	at := func(n uint64) view {
		return view{
			guest: &snapshot{Received: 5, Retrans: n * 3}, control: &snapshot{},
			sender: &snapshot{Clock: time.Duration(n) * time.Second, Received: int64(n) * 1e9, Retrans: 8},
			stats:  &api.VMStats{TxFrames: n * 10, TxBytes: n * 1000, TxWireFrames: n * 400, TxDropped: map[string]uint64{"source_mac": n}},
		}
	}
	m := difference(at(1), at(2), true)
	if m.Gbps != 8 || m.Retransmits != 3 || m.GuestFrames != 10 || m.WireFrames != 400 || m.MeanBytes != 100 || m.Segments != 40 || m.Drops != 1 {
		t.Errorf("%+v", m)
	}
}

// The two versions of control groups, alone and beside each other as on many hosts; one that this process is in is tried before the topmost.
func TestPlacesForAQuota(t *testing.T) {
	const (
		v1   = "25 20 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n26 20 0:23 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
		v2   = "30 20 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		mine = "4:cpu,cpuacct:/a\n3:pids:/b\n0::/c\n"
	)
	tests := []struct {
		name, mounts, own string
		want              []quota
	}{
		{"version 1", v1, mine, []quota{{parent: "/sys/fs/cgroup/cpu,cpuacct/a"}, {parent: "/sys/fs/cgroup/cpu,cpuacct"}}},
		{"version 2", v2, mine, []quota{{parent: "/sys/fs/cgroup/unified/c", two: true}, {parent: "/sys/fs/cgroup/unified", two: true}}},
		{"topmost", v2, "0::/\n", []quota{{parent: "/sys/fs/cgroup/unified", two: true}}},
		{"none", "22 1 0:3 / /proc rw - proc proc rw\n", mine, nil},
	}
	for _, tt := range tests {
		if got := placesOf(tt.mounts, tt.own); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestKernelThreadsAreTheChildrenOfTwo(t *testing.T) {
	const tail = " 0 0 0 -1 69238880 0 0 0 0 3 40 0 0 20 0 1 0 2 0 0\n"
	for stat, want := range map[string]time.Duration{
		"14 (ksoftirqd/0) S 2" + tail: 430 * time.Millisecond,
		"900 (a) b (c) R 2" + tail:    0,
		"1200 (bash) S 900" + tail:    0,
		"":                            0,
	} {
		if got := kernelThread(stat); got != want {
			t.Errorf("%q: %v, want %v", stat, got, want)
		}
	}
}

// A thread that ends takes nothing from what the others used, and no part is negative.
func TestAKernelThreadThatEndsTakesNothingWithIt(t *testing.T) {
	before := threads{"14": 5 * time.Second, "77": 9 * time.Second, "80": 3 * time.Second}
	if got := (threads{"14": 6 * time.Second, "78": 2 * time.Second, "80": time.Second}).since(before); got != 4*time.Second {
		t.Errorf("%v, want 1 s of the first, 2 s of a new one and 1 s of one that has another's number", got)
	}
}

func TestTableNamesRatioReasonsAndData(t *testing.T) {
	r := Result{Kernel: "6.1", XDPMode: "native", XSKMode: "copy", Speedup: 3, GuestCPU: 4, GuestCPUGuestGRO: 5, NoQuota: "no group", DataMatch: true,
		Off: Mode{Gbps: 2, CPU: CPU{Guest: 1}}, On: Mode{Gbps: 6, CPU: CPU{Guest: 0.25}, Reasons: map[string]uint64{"psh": 2, "size": 9}}}
	var out strings.Builder
	if err := r.text(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3.00 times the rate", "4.00 times less guest CPU", "5.00 times less with the guest's own", "not measured, no group", "size 9, psh 2", "arrived as it was sent", "native", "\noff + guest GRO  coalescing off, and the guest's own GRO on"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestProcCounterReadsBothForms(t *testing.T) {
	const snmp = "Ip: Forwarding InReceives InHdrErrors\nIp: 1 4711 0\nTcp: InReceives\nTcp: 5\n"
	tests := []struct {
		text, table, name string
		want              uint64
	}{
		{snmp, "Ip:", "InReceives", 4711},
		{snmp, "Tcp:", "InReceives", 5},
		{snmp, "Ip:", "Missing", 0},
		{snmp, "Udp:", "InReceives", 0},
		{"Ip6InReceives   12\nIp6InHdrErrors 3\n", "", "Ip6InReceives", 12},
		{"", "", "Ip6InReceives", 0},
	}
	for _, tt := range tests {
		if got := procCounter(tt.text, tt.table, tt.name); got != tt.want {
			t.Errorf("%q %s: %d, want %d", tt.table, tt.name, got, tt.want)
		}
	}
}

func TestMachineBusyGrows(t *testing.T) {
	a, err := machineBusy()
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
	}
	if b, err := machineBusy(); err != nil || b <= a {
		t.Errorf("from %v to %v, %v", a, b, err)
	}
}
