package metrics

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/rscctl/rscctl/controller/api"
)

// sample has a different number in each counter, so that no two can be taken for each other.
func sample() Look {
	n := uint64(1000)
	number := func(v reflect.Value) {
		for i := range v.NumField() {
			if f := v.Field(i); f.Kind() == reflect.Uint64 {
				n++
				f.SetUint(n)
			}
		}
	}
	vm := api.VMStats{
		VM: "db1", Iface: "eth1", Unexplained: -3, Held: 8, Passed: map[string]uint64{"syn": 20}, Sealed: map[string]uint64{"psh": 150},
		Dropped: map[string]uint64{"guest_no_buffers": 12}, TxDropped: map[string]uint64{"source_mac": 4},
		FrameBytes: []api.Bucket{{Le: 128, Count: 1}, {Le: 1514, Count: 2}, {Count: 4}}, HoldNS: []api.Bucket{{Le: 1000, Count: 5}, {Le: 50000, Count: 6}, {}},
	}
	number(reflect.ValueOf(&vm).Elem())
	q := api.Queue{ID: 1, Worker: api.WorkerRunning, Chunks: 8192, Held: 31, OpenSlots: 2}
	number(reflect.ValueOf(&q).Elem())
	q.CPUNS = 2.5e9
	return Look{
		Stats: api.Stats{VMs: []api.VMStats{vm}, Outcomes: map[string]uint64{"redirect": 77}},
		Status: api.Status{
			Interfaces: []api.Interface{{Name: "eth1", Queues: []api.Queue{q, {ID: 2, Worker: api.WorkerStuck}}, Ports: []api.Port{
				{VM: "db1", State: api.PortRunning}, {VM: "off", State: api.PortWaiting}, {VM: "left", State: api.PortRunning, StopReason: "rules"},
			}}},
			Waiting: []api.Waiting{{VM: "web", Iface: "eth2"}},
		},
	}
}

func seeing(l Look, err error) *collector {
	return &collector{version: "v1", look: func() (Look, error) { return l, err }}
}

// Names, units and help keep to Prometheus' conventions, by the check that promtool makes.
func TestMetricsKeepToTheConventions(t *testing.T) {
	problems, err := testutil.CollectAndLint(seeing(sample(), nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Every counter of a VM and of a queue is a metric, and none is two.
func TestEveryCounterIsAMetric(t *testing.T) {
	l := sample()
	text := scrape(t, l)
	for what, v := range map[string]reflect.Value{"VM": reflect.ValueOf(l.Stats.VMs[0]), "queue": reflect.ValueOf(l.Status.Interfaces[0].Queues[0])} {
		for i := range v.NumField() {
			f, name := v.Field(i), v.Type().Field(i).Name
			if f.Kind() != reflect.Uint64 || strings.Contains(name, "NS") { // in seconds
				continue
			}
			if n := strings.Count(text, " "+strconv.FormatUint(f.Uint(), 10)+"\n"); n != 1 {
				t.Errorf("%s of a %s stands in %d metrics", name, what, n)
			}
		}
	}
	for _, want := range []string{
		`rscctl_build_info{version="v1"} 1`,
		`rscctl_vm_passed_packets_total{iface="eth1",reason="syn",vm="db1"} 20`,
		`rscctl_vm_sealed_superframes_total{iface="eth1",reason="psh",vm="db1"} 150`,
		`rscctl_vm_dropped_packets_total{iface="eth1",reason="guest_no_buffers",vm="db1"} 12`,
		`rscctl_vm_sent_dropped_frames_total{iface="eth1",reason="source_mac",vm="db1"} 4`,
		`rscctl_vm_unexplained_packets{iface="eth1",vm="db1"} -3`,
		`rscctl_vm_frame_bytes_bucket{iface="eth1",vm="db1",le="128"} 1`,
		`rscctl_vm_frame_bytes_bucket{iface="eth1",vm="db1",le="1514"} 3`,
		`rscctl_vm_frame_bytes_bucket{iface="eth1",vm="db1",le="+Inf"} 7`,
		`rscctl_vm_hold_seconds_bucket{iface="eth1",vm="db1",le="1e-06"} 5`,
		`rscctl_vm_hold_seconds_count{iface="eth1",vm="db1"} 11`,
		`rscctl_vm_running{iface="eth1",vm="db1"} 1`, `rscctl_vm_running{iface="eth1",vm="off"} 0`, `rscctl_vm_running{iface="eth1",vm="left"} 0`,
		`rscctl_vm_waiting{iface="eth2",vm="web"} 1`,
		`rscctl_queue_worker_running{iface="eth1",queue="1"} 1`, `rscctl_queue_worker_running{iface="eth1",queue="2"} 0`,
		`rscctl_queue_worker_cpu_seconds_total{iface="eth1",queue="1"} 2.5`,
		`rscctl_queue_chunks{iface="eth1",queue="1"} 8192`, `rscctl_queue_held_chunks{iface="eth1",queue="1"} 31`, `rscctl_queue_open_slots{iface="eth1",queue="1"} 2`,
		`rscctl_xdp_frames_total{outcome="redirect"} 77`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

func scrape(t *testing.T, l Look) string {
	t.Helper()
	w := httptest.NewRecorder()
	Server(Handler("v1", func() (Look, error) { return l, nil })).Handler.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// A look that fails is a scrape that fails: no old value is taken for a new one.
func TestALookThatFailsIsAScrapeThatFails(t *testing.T) {
	w := httptest.NewRecorder()
	Handler("v1", func() (Look, error) { return Look{}, errors.New("worker 3 is stuck") }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "worker 3 is stuck") || strings.Contains(w.Body.String(), "rscctl_build_info 1") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

// A hundred scrapes in a moment are one look at the workers.
func TestManyScrapesAreOneLook(t *testing.T) {
	looks, fail := 0, true
	h := Handler("v1", func() (Look, error) {
		if looks++; fail {
			return Look{}, errors.New("stuck")
		}
		return sample(), nil
	})
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Code
	}
	for range 2 {
		if code := ask(); code != http.StatusInternalServerError {
			t.Errorf("%d", code)
		}
	}
	if looks != 2 {
		t.Errorf("%d looks: a failure is kept", looks)
	}
	fail = false
	for range 100 {
		if code := ask(); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	if looks > 10 { // a slow machine may take seconds
		t.Errorf("%d looks", looks)
	}
}

// Without a host only this machine can scrape; what is no address is refused by one line that says what is.
func TestAnAddressWithoutAHostIsThisMachines(t *testing.T) {
	for _, address := range []string{"0", ":0", "127.0.0.1:0"} {
		l, err := Listen(address)
		if err != nil {
			t.Fatal(err)
		}
		if ip := l.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
			t.Errorf("%q: %s", address, ip)
		}
		go func() { _ = Server(Handler("v1", func() (Look, error) { return sample(), nil })).Serve(l) }()
		for path, want := range map[string]int{"/metrics": 200, "/": 200, "/debug/pprof": 404, "/metrics/x": 404} {
			r, err := http.Get("http://" + l.Addr().String() + path)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("%s: %d", path, r.StatusCode)
			}
		}
		_ = l.Close()
	}
	for _, address := range []string{"here", "1.2.3.4", "a:b", ":70000", "1:2:3", "[::1]", "-1", ":"} {
		if l, err := Listen(address); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %v", address, err)
			if err == nil {
				_ = l.Close()
			}
		}
	}
	if _, err := Listen("203.0.113.77:9100"); err == nil || !strings.Contains(err.Error(), "--metrics") {
		t.Errorf("somebody else's address: %v", err)
	}
}
