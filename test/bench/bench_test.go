package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/test/netnstest"
)

// TestMain makes the test binary its own child, as the program is, and the program itself for tests that start it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == demo.ChildVerb || os.Args[1] == "-root") {
		main()
	}
	os.Exit(m.Run())
}

// What is quoted is what was measured: the documents are as the committed result makes them.
func TestDocumentsQuoteTheCommittedResult(t *testing.T) {
	r, err := readResult("../../bench/bench.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range quoting {
		b, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := quoted(string(b), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if text != string(b) {
			t.Errorf("%s: its figures are not those of bench/bench.json: go run ./test/bench -quote", name)
		}
		if !strings.Contains(text, "<!-- bench:") {
			t.Errorf("%s quotes nothing", name)
		}
	}
	if b, err := os.ReadFile("../../bench/bench.md"); err != nil || string(b) != page(r) {
		t.Errorf("bench/bench.md is not of bench/bench.json (%v)", err)
	}
}

func TestAnUnknownBlockIsAnError(t *testing.T) {
	if _, err := quoted("<!-- bench:nonsense -->\n<!-- /bench -->", &Result{}); err == nil {
		t.Error("no error")
	}
	// A result without a row says so instead of failing: a machine may lack a way.
	for name, text := range blocksOf(&Result{}) {
		if text == "" {
			t.Errorf("%s is empty", name)
		}
	}
}

func TestSpreadKeepsAllThree(t *testing.T) {
	for _, tt := range []struct {
		v    []float64
		want Spread
	}{
		{[]float64{3, 1, 2}, Spread{1, 2, 3, 3}}, {[]float64{4, 1, 2, 3}, Spread{1, 2.5, 4, 4}}, {[]float64{7}, Spread{7, 7, 7, 1}}, {nil, Spread{}},
	} {
		if got := spread(tt.v); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.v, got, tt.want)
		}
	}
}

func TestBenchmarkOutputIsRead(t *testing.T) {
	const out = "goos: linux\nBenchmarkCopyFloor/flows=64-2 \t 1000\t 0 ns/op\t 69.5 ns/seg\nBenchmarkParse/x-2 \t 100\t 12.5 ns/op\nPASS\n"
	found, err := parse("p", []byte(out))
	if err != nil || len(found) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	if f := found[0]; f.key != [2]string{"p", "CopyFloor/flows=64"} || len(f.values) != 1 || f.values["ns/seg"] != 69.5 {
		t.Errorf("%+v", f)
	}
	if f := found[1]; f.key[1] != "Parse/x" || f.values["ns/op"] != 12.5 {
		t.Errorf("%+v", f)
	}
}

func TestProfileIsSumsOfParts(t *testing.T) {
	const top = `Type: cpu
      flat  flat%   sum%        cum   cum%
     1.00s 50.00% 50.00%      1.00s 50.00%  internal/runtime/syscall/linux.Syscall6
     0.40s 20.00% 70.00%      0.40s 20.00%  runtime.memmove
     0.20s 10.00% 80.00%      0.60s 30.00%  github.com/rscctl/rscctl/flowtable.(*Table).Add
     0.20s 10.00% 90.00%      0.20s 10.00%  github.com/rscctl/rscctl/flowtable/checksum.sumAVX2
     0.20s 10.00%   100%      0.20s 10.00%  github.com/rscctl/rscctl/flowtable.(*Table).seal
`
	got := map[string]float64{}
	for _, s := range stagesOf(top) {
		got[s.Name] = s.Percent
	}
	if len(got) != 4 || got["flow table: match, merge, seal"] != 20 || got["copy into the guest's memory"] != 20 {
		t.Errorf("%v", got)
	}
}

// What is compared in one repeat makes one ratio; a row that failed in one makes none of it.
func TestRatiosAreOfOneRepeatEach(t *testing.T) {
	b := &bench{result: &Result{}, samples: map[string][]map[string]float64{
		"x/on": {{"gbps": 4}, {"gbps": 9}, nil}, "x/off": {{"gbps": 2}, {"gbps": 3}, {"gbps": 1}},
	}}
	b.compare("rate/x", "x/on", "x/off", "gbps")
	if got := b.result.ratio("rate/x"); got != (Spread{2, 2.5, 3, 2}) {
		t.Errorf("%+v", got)
	}
}

// program starts this test's binary as the program and returns how it ended and what it said.
func program(t *testing.T, args ...string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"-root", "../.."}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// One row of a second, through the product and all that this program adds around it.
func TestSmallestFormMeasures(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	dir := t.TempDir()
	cmd, out := program(t, "-smallest", "-repeats", "1", "-round", "1s", "-out", dir)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := readResult(filepath.Join(dir, "smallest.json"))
	if err != nil {
		t.Fatal(err)
	}
	x := r.row("receive/ipv4/gro=off/flows=1/on")
	if x == nil || x.Values["gbps"].Median <= 0 || x.Values["cpu_guest"].Median <= 0 || x.Values["segments"].Median <= 1 {
		b, _ := json.Marshal(r)
		t.Errorf("%s", b)
	}
	for _, id := range []string{"peer/qemu-af-xdp"} {
		if x := r.row(id); x == nil || x.Note == "" {
			t.Errorf("%s: %+v: a peer that is not measured has to say why", id, x)
		}
	}
	if r.Machine.Kernel == "" || r.Machine.Processors == 0 || r.Commit == "" {
		t.Errorf("machine %+v, commit %q", r.Machine, r.Commit)
	}
}

// A row that is asked for by its name is measured and shown, also one that is no stream, and a name of none is no empty table.
func TestRowsByTheirNames(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	for rows, want := range map[string]string{"^idle$": "| idle | cpu_percent ", "^idel$": "-rows ^idel$: no row has such a name"} {
		cmd, out := program(t, "-repeats", "1", "-rows", rows)
		err := cmd.Wait()
		if fails := strings.HasPrefix(want, "-rows"); (err != nil) != fails || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, want %q in\n%s", rows, err, want, out)
		}
	}
}

// The kernel's own way carries data to the same guest, and requests go both ways.
func TestTheKernelsWayAndRequests(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	s, err := demo.OpenStage(t.Context(), demo.StageOptions{Host: kernelTuned.host, Round: 200 * time.Millisecond})
	if err != nil && strings.Contains(err.Error(), "bridge: operation not supported") {
		netnstest.SkipToVM(t, "bridges")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := &bench{opt: options{round: 200 * time.Millisecond}, result: &Result{}}
	for _, gro := range []bool{false, true} {
		v, err := b.stream(s, planned{way: kernelTuned, set: demo.Setting{GuestGRO: gro}})
		if err != nil || v["gbps"] <= 0 || v["segments"] < 1 {
			t.Fatalf("guest's GRO %t: %v, %v", gro, v, err)
		}
	}
	v, err := requests(t.Context(), s, planned{way: kernelTuned, ping: &pinging{}})
	if err != nil || v["requests"] < 1 || v["p50_us"] <= 0 || v["p999_us"] < v["p50_us"] {
		t.Errorf("requests: %v, %v", v, err)
	}
}

// Where DPDK's testpmd is installed a guest hangs on it as on us, and its processor time is told. It polls, so it ends with its row: it would take
// a processor from all rows that follow.
func TestDPDKsWay(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	b, err := newBench(t.Context(), options{round: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer b.closeStages()
	row := planned{way: testpmd}
	if err := b.row(row, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.broken[testpmd]; err != nil && strings.Contains(err.Error(), errNoTestpmd.Error()) {
		t.Skip("allowed: " + err.Error())
	}
	if v := b.samples[row.id()][0]; v["gbps"] <= 0 || v["cpu_controller"] <= 0 {
		t.Errorf("%v, %v", v, b.result.Notes)
	}
	for end := time.Now().Add(netnstest.Patience(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		left, _ := filepath.Glob(testpmdSocket(0)[:len(testpmdSocket(0))-len("0.sock")] + "*")
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// Every row has a name of its own, and what is compared with another row is so with one that is measured, too.
func TestRowsHaveNamesOfTheirOwn(t *testing.T) {
	rows := plan(options{all: true})
	ids, added := map[string]bool{}, 0
	for _, p := range rows {
		if ids[p.id()] {
			t.Errorf("two rows are named %s", p.id())
		}
		ids[p.id()] = true
	}
	for _, p := range rows {
		if base, ok := p.undisturbed(); ok {
			if added++; !ids[base.id()] || base.id() == p.id() {
				t.Errorf("%s is compared with %s", p.id(), base.id())
			}
		}
	}
	if added != 3 {
		t.Errorf("%d rows of requests beside something, of 3", added)
	}
}

func TestWhatIsAddedToARowIsOfOneRepeat(t *testing.T) {
	b := &bench{samples: map[string][]map[string]float64{
		"base": {{"p99_us": 100}, nil, {"p99_us": 50}}, "row": {{"p99_us": 130}, {"p99_us": 1}, {"p99_us": 40}},
	}}
	b.added("row", "base")
	if r := b.samples["row"]; r[0]["p99_added_us"] != 30 || r[2]["p99_added_us"] != -10 || len(r[1]) != 1 {
		t.Errorf("%v", r)
	}
}

// The controller of a row counts the flows that its sender's process shows it, and answers while requests run.
func TestRequestsBesideAnOperator(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	s, err := demo.OpenStage(t.Context(), demo.StageOptions{Round: 200 * time.Millisecond, Tracked: 10_000, BusyPoll: time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Sender("flows", manyFlows{s.Wire(), s.GuestMAC(), 2000}, nil); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Client().Flows(t.Context(), api.FlowsQuery{Limit: 1}); err != nil || f.Total < 1000 {
		t.Errorf("%+v, %v", f, err)
	}
	for what := range besides {
		stop := during(t.Context(), s, what)
		time.Sleep(50 * time.Millisecond)
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// Without root there is no result, whatever else there is: nothing is written, and the error says what to do.
func TestWithoutRootItSaysSo(t *testing.T) {
	dir := t.TempDir()
	err := run(t.Context(), options{smallest: true, repeats: 1, round: time.Second, out: dir, root: "../..", user: 1000})
	if !errors.Is(err, errRoot) || !strings.Contains(err.Error(), "sudo make bench") {
		t.Errorf("%v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("it wrote %v", files)
	}
}

// A machine that was busy before says so in the result, and a way that it does not have is a row without figures and with the reason.
func TestWhatIsMissingIsSaid(t *testing.T) {
	b := &bench{result: &Result{}, samples: map[string][]map[string]float64{}, broken: map[way]error{kernel: errors.New("no bridge here")}}
	b.conclude([]planned{{way: kernel}, {way: ours}})
	for _, want := range []string{"not measured: no bridge here", "not measured"} {
		if x := b.result.Rows[0]; !strings.HasPrefix(x.Note, want) || x.Values["gbps"].N != 0 {
			t.Errorf("%+v, want %q", x, want)
		}
		b.result.Rows = b.result.Rows[1:]
	}
}

// Interrupted, it ends by itself, with its processes, and writes nothing.
func TestInterruptedItLeavesNothing(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	dir := t.TempDir()
	cmd, out := program(t, "-smallest", "-repeats", "1", "-round", "1m", "-out", dir)
	pid := cmd.Process.Pid
	var children []string
	for range 200 {
		if children = childrenOf(pid); len(children) == 3 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(children) != 3 {
		t.Errorf("%d processes, want 3", len(children))
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, c := range children {
		if _, err := os.Stat("/proc/" + c); err == nil {
			t.Errorf("process %s is still there", c)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("it wrote %v", files)
	}
}

// childrenOf lists the processes whose parent it is.
func childrenOf(pid int) (children []string) {
	files, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		children = append(children, strings.Fields(string(b))...)
	}
	return children
}
