package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/report"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fakeController serves fixed answers on a Unix socket and remembers what it was asked. It tests the command line only:
// the real controller has tests of its own.
type fakeController struct {
	socket string
	mu     sync.Mutex
	asked  []string // "METHOD path?query body"
	refuse *api.Error

	streams map[string]func(w http.ResponseWriter) // by path
}

func newFake(t *testing.T) *fakeController {
	t.Helper()
	f := &fakeController{socket: filepath.Join(t.TempDir(), "s")}
	f.serve(t)
	return f
}

// serve listens until the test's end, or until what it returns is called.
func (f *fakeController) serve(t *testing.T) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Close
}

func (f *fakeController) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	body.ReadFrom(r.Body)
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI()+" "+body.String())
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		w.WriteHeader(refuse.Status)
		json.NewEncoder(w).Encode(refuse.ErrorBody)
		return
	}
	if stream := f.streams[r.URL.Path]; stream != nil {
		stream(w)
		return
	}
	json.NewEncoder(w).Encode(answer(r, body.Bytes()))
}

func (f *fakeController) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		return ""
	}
	return f.asked[len(f.asked)-1]
}

func (f *fakeController) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

func answer(r *http.Request, body []byte) any {
	switch r.URL.Path {
	case "/v1/status":
		return sampleStatus()
	case "/v1/attach":
		var req api.AttachRequest
		json.Unmarshal(body, &req)
		return api.AttachResponse{
			Schema: api.Schema, Iface: req.Iface, VM: req.VM, DryRun: req.DryRun,
			Changes:  []string{"XDP program in native mode (the link may flap)", "unicast filter: 52:54:00:12:34:56 added"},
			Warnings: []string{"the veth peer sends partial checksums: ethtool -K peer tx off"},
		}
	case "/v1/detach":
		return api.DetachResponse{Schema: api.Schema, Iface: "eth0", VMs: []string{"web", "db"}, Restored: []string{"XDP program removed"}, Warnings: []string{"in force, but state: not saved"}}
	case "/v1/flows":
		return sampleFlows()
	case "/v1/policy":
		return samplePolicy()
	case "/v1/config":
		return sampleConfig()
	case "/v1/stats":
		return sampleStats()
	}
	return nil
}

func samplePolicy() api.PolicyResponse {
	return api.PolicyResponse{
		Schema: api.Schema, VM: "web", Effective: "gro", Note: "the guest did not negotiate RSC_EXT",
		Policy: api.Policy{Coalesce: true, IPv4: true, Host: true, Profile: "rsc", HoldNS: 50000, MaxBytes: 65535, ExcludePorts: []uint16{22, 53}},
	}
}

func sampleConfig() api.Config {
	off, hold, ports := false, int64(20000), []uint16{22, 53}
	return api.Config{
		Schema: api.Schema, DefaultPolicy: api.Policy{Coalesce: true, IPv4: true, IPv6: true, Host: true, Profile: "gro", HoldNS: api.AdaptiveHold.Nanoseconds(), HoldAdaptive: true, MaxBytes: 65535, ExcludePorts: []uint16{}},
		VMs: []api.AttachRequest{
			{VM: "web", Iface: "eth0", MAC: "52:54:00:12:34:56", VhostUser: "/run/rscctl/web.sock", SocketOwner: "libvirt-qemu:kvm", Policy: api.PolicyPatch{HoldNS: &hold, ExcludePorts: &ports}},
			{VM: "db", Iface: "eth0", MAC: "52:54:00:12:34:57", VLAN: 100, Domain: "db", Tap: "vnet3", Policy: api.PolicyPatch{Coalesce: &off}},
		},
	}
}

func known(yes bool) *bool { return &yes }

func sampleStatus() api.Status {
	pol := samplePolicy().Policy
	well := api.Health{State: api.HealthGood, Reasons: []string{}}
	st := api.Status{
		Schema: api.Schema, PID: 4711, Version: "v1.2.3", StartedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), State: "/var/lib/rscctl",
		FlowsPin: "/sys/fs/bpf/rscctl/flows", Warnings: []string{"the bpf filesystem is nearly full"},
		Interfaces: []api.Interface{{
			Name: "eth0", Index: 3, MTU: 1500, Driver: "veth", XDPMode: "native", XSKMode: "copy", Metadata: known(true), Link: api.LinkUp,
			Health: api.Health{State: api.HealthDegraded, Reasons: []string{"the veth peer sends partial checksums: ethtool -K peer tx off"}},
			Queues: []api.Queue{
				{ID: 0, Worker: api.WorkerRunning, Health: well, CPUNS: 12.5e9, RxFrames: 1234567, TxFrames: 54321, RxRingFull: 12, Hangs: 3, HangPassed: 2500, Chunks: 4096, ChunkSize: 2048, Held: 31, OpenSlots: 2},
				{ID: 1, Worker: api.WorkerStuck, Health: api.Health{State: api.HealthDown, Reasons: []string{"worker 1: the worker does not answer"}}, RxFrames: 7, Chunks: 4096, ChunkSize: 2048},
			},
			Ports: []api.Port{
				{VM: "web", MAC: "52:54:00:12:34:56", Feed: "vhost-user", Socket: "/run/rscctl/web.sock", Mode: "listen",
					State: "running", QueuePairs: 2, QueueSize: 1024, Features: []string{"GUEST_CSUM", "GUEST_TSO4", "MRG_RXBUF"},
					FeatureBits: "0x8082", Policy: pol, Effective: "gro", PolicyNote: "the guest did not negotiate RSC_EXT", Health: well},
				{VM: "db", MAC: "52:54:00:12:34:57", VLAN: 100, Feed: "vhost-user", Socket: "/run/rscctl/db.sock", Mode: "connect",
					State: "failed", StopReason: "bad descriptor index", AllowSpoof: true, Effective: "off",
					MACs: []string{"00:00:5e:00:01:07"}, IPs: []string{"10.0.0.5", "2001:db8:7::/64"}, Policy: api.Policy{RateTx: 1e8, RateRx: 1e9, BurstRx: 256 << 10, Isolate: true},
					Health:   api.Health{State: api.HealthDown, Reasons: []string{"its port is failed: bad descriptor index", "the guest asked for an absurd ring"}},
					Warnings: []string{"the guest asked for an absurd ring"}},
				{VM: "old", MAC: "52:54:00:12:34:58", Feed: "packet", FeedNote: "/dev/vhost-net: missing", Tap: "vnet7", Mode: "steered",
					State: "running", QueuePairs: 1, Features: []string{"GUEST_CSUM", "GUEST_TSO4"}, FeatureBits: "0x82", Policy: pol,
					Effective: "gro", Bypassed: []string{"table bridge filter"}, Health: well},
			},
			Changes:  []string{"XDP program in native mode"},
			Warnings: []string{"the veth peer sends partial checksums: ethtool -K peer tx off"},
		}},
		Waiting: []api.Waiting{
			{VM: "mail", Iface: "eth0", MAC: "52:54:00:12:34:59", VLAN: 100, Since: time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC), Cause: "tap vnet9: no such device"},
			{VM: "git", Iface: "eth1", MAC: "52:54:00:12:34:60", Since: time.Date(2026, 1, 1, 0, 3, 0, 0, time.UTC), Cause: "interface eth1: MTU 9000 too large",
				NextTry: time.Date(2026, 1, 1, 0, 3, 20, 0, time.UTC)},
		},
	}
	st.Health = report.Health(&st)
	return st
}

func sampleFlows() api.Flows {
	return api.Flows{Schema: api.Schema, Total: 5, Flows: []api.Flow{
		{Iface: "eth0", VM: "web", Direction: "to_guest", Family: 4, Src: "10.0.0.1", Dst: "10.0.0.2", SrcPort: 43210, DstPort: 5201,
			Packets: 1234567, Bytes: 1869134438, PayloadBytes: 1787652016, TCPFlags: []string{"SYN", "ACK", "PSH"},
			Verdicts: map[string]uint64{"ok": 1234567}, FirstNS: 1, LastNS: 10000000001, AgeNS: 1250000, BitsPerSec: 1.495e9},
		{Iface: "eth0", VM: "db", Direction: "to_wire", VLAN: 100, Family: 6, Src: "fd00::1", Dst: "fd00::2", SrcPort: 1, DstPort: 443,
			Packets: 3, Bytes: 222, Verdicts: map[string]uint64{"ok": 1, "ext_header": 2}, AgeNS: 3725e9},
	}}
}

func sampleStats() api.Stats {
	return api.Stats{
		Schema: api.Schema,
		VMs: []api.VMStats{{
			VM: "web", Iface: "eth0", RxPackets: 100000, RxBytes: 151400000, Superframes: 2200, MergedPackets: 98800,
			GuestFrames: 3380, GuestBytes: 145000000, Passed: map[string]uint64{"pure_ack": 1000, "syn": 20, "deadline": 160},
			Sealed: map[string]uint64{"max_bytes": 2000, "psh": 150, "deadline": 50}, Dropped: map[string]uint64{"guest_no_buffers": 12},
			Held: 8, Unexplained: -3, Interrupts: 900, TxFrames: 500, TxBytes: 33000, TxWireFrames: 510, TxDropped: map[string]uint64{"source_mac": 4},
			QEMU: map[string]uint64{"coalesced": 96600}, Virtio: map[string]uint64{"rx_gso_packets": 2200},
			LocalFrames: 6, LatePackets: 5, TapDropped: 2,
			FrameBytes: []api.Bucket{{Le: 128, Count: 0}, {Le: 1514, Count: 1180}, {Le: 32768, Count: 200}, {Le: 0, Count: 2000}},
			HoldNS:     []api.Bucket{{Le: 1000, Count: 3170}, {Le: 50000, Count: 210}, {Le: 0, Count: 0}},
		}},
		Queues:   map[string]api.Queue{"eth0/1": {ID: 1, Worker: api.WorkerStuck, Health: api.Health{State: api.HealthDown}, RxFrames: 7, Chunks: 4096}, "eth0/0": {Worker: api.WorkerRunning, RxFrames: 100000, Chunks: 4096, Held: 8}},
		Outcomes: map[string]uint64{"redirect": 100007, "pass_host": 55}, Unexplained: -3,
	}
}

// rscctl runs one command line in process.
func rscctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	code = execute(ctx, args, streams{in: bytes.NewReader(nil), out: &out, err: &errs})
	return code, out.String(), errs.String()
}

// golden compares text with testdata/name, or with -update rewrites it.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
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
