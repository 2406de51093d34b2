package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rscctl/rscctl/controller/api"
)

func TestOutputOfEveryVerbIsStable(t *testing.T) {
	fake := newFake(t)
	attach := []string{"attach", "eth0", "--vm", "web", "--mac", "52:54:00:12:34:56", "--vhost-user", "/run/web.sock"}
	for _, tt := range []struct {
		golden string
		args   []string
	}{
		{"attach.golden", attach},
		{"attach-dry-run.golden", append(attach, "--dry-run")},
		{"attach.json.golden", append(attach, "-o", "json")},
		{"detach.golden", []string{"detach", "eth0"}},
		{"flows.golden", []string{"flows"}},
		{"flows.json.golden", []string{"flows", "-o", "json"}},
		{"policy.golden", []string{"policy", "get", "web"}},
		{"policy.json.golden", []string{"policy", "set", "web", "--coalesce=off", "-o=json"}},
		{"stats.golden", []string{"stats"}},
		{"stats.json.golden", []string{"stats", "-o", "json"}},
		{"export.golden", []string{"export"}},
		{"apply.golden", []string{"apply", "-f", "testdata/apply.yaml", "--prune"}},
		{"apply-dry-run.golden", []string{"apply", "--dry-run", "--file=testdata/apply.yaml"}},
		{"apply.json.golden", []string{"apply", "-f", "testdata/apply.yaml", "-o", "json"}},
		{"apply-nothing.golden", []string{"apply", "-f", "testdata/export.golden", "--prune"}},
		{"why.golden", []string{"why", "web"}},
		{"why.json.golden", []string{"why", "web", "-o", "json"}},
		{"stats.json.golden", []string{"--json", "stats"}},
		{"status.json.golden", []string{"status", "--json"}},
		{"why.json.golden", []string{"why", "web", "--json", "-o", "json"}},
		{"why-waiting.golden", []string{"why", "git"}},
		{"status.json.golden", []string{"status", "-o", "json"}},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			code, out, errs := rscctl(t, append(tt.args, "--socket", fake.socket)...)
			if code != exitDone || errs != "" {
				t.Fatalf("exit %d, stderr %q", code, errs)
			}
			golden(t, tt.golden, out)
		})
	}
	t.Run("status.golden", func(t *testing.T) { // its up time needs a clock that stands
		var out bytes.Buffer
		st := sampleStatus()
		if err := (statusView{st: &st, now: st.StartedAt.Add(192 * time.Second)}).print(&out); err != nil {
			t.Fatal(err)
		}
		golden(t, "status.golden", out.String())
	})
}

func TestRequestsCarryWhatTheCommandLineSays(t *testing.T) {
	fake := newFake(t)
	for _, tt := range []struct{ args, want string }{
		{"status", "GET /v1/status "},
		{"status eth0", "GET /v1/status?iface=eth0 "},
		{"flows --vm web --limit 3 --sort rate", "GET /v1/flows?limit=3&sort=rate&vm=web "},
		{"stats --vm web", "GET /v1/stats?vm=web "},
		{"detach --vm web eth0", `POST /v1/detach {"iface":"eth0","vm":"web"}`},
		{"policy reset web", `POST /v1/policy {"vm":"web","reset":true,"patch":{}}`},
		{"policy set web --hold 300us --ipv6 off", `POST /v1/policy {"vm":"web","patch":{"ipv6":false,"hold_ns":300000}}`},
		{"policy set web --hold adaptive:1ms", `POST /v1/policy {"vm":"web","patch":{"hold_ns":1000000,"hold_adaptive":true}}`},
		{"policy set web --hold adaptive", `POST /v1/policy {"vm":"web","patch":{"hold_ns":10000000,"hold_adaptive":true}}`},
		{"policy --hold 0 set --max-segments 0 web", `POST /v1/policy {"vm":"web","patch":{"hold_ns":0,"max_segments":0}}`},
		{"policy set web --exclude-port 22 --exclude-port 53", `POST /v1/policy {"vm":"web","patch":{"exclude_ports":[22,53]}}`},
		{"policy set web --isolate off --rate-tx 1.5Gbit/64KiB --rate-rx none", `POST /v1/policy {"vm":"web","patch":{"isolate":false,"rate_tx":1500000000,"burst_tx":65536,"rate_rx":0,"burst_rx":0}}`},
		{"policy set web --isolate --ip 2001:db8::/64,10.0.0.5 --ip 10.0.0.4", `POST /v1/policy {"vm":"web","patch":{"isolate":true},"ips":["10.0.0.4","10.0.0.5","2001:db8::/64"]}`},
		{"policy set web --mac 52-54-00-12-34-5C --ip none", `POST /v1/policy {"vm":"web","patch":{},"macs":["52:54:00:12:34:5c"],"ips":[]}`},
		{"attach eth0 --vm web --mac 52:54:00:12:34:5a --mac 52:54:00:12:34:5b --vhost-user /s --isolate",
			`POST /v1/attach {"iface":"eth0","vm":"web","mac":"52:54:00:12:34:5a","vhost_user":"/s","policy":{"isolate":true},"macs":["52:54:00:12:34:5b"]}`},
		{"policy set web --exclude-port none", `POST /v1/policy {"vm":"web","patch":{"exclude_ports":[]}}`},
		{"attach --vm web --mac 52-54-00-12-34-5A --vhost-user /s eth0 --vlan 7 --connect --allow-spoof --fix-offloads",
			`POST /v1/attach {"iface":"eth0","vm":"web","mac":"52:54:00:12:34:5a","vlan":7,"vhost_user":"/s","connect":true,` +
				`"policy":{},"allow_spoof":true,"fix_offloads":true}`},
		{"attach eth0 --vm web --mac 52:54:00:12:34:5a --vhost-user /s --mtu 1500",
			`POST /v1/attach {"iface":"eth0","vm":"web","mac":"52:54:00:12:34:5a","vhost_user":"/s","mtu":1500,"policy":{}}`},
		{"attach eth0 --vm web --mac 52:54:00:12:34:5a --tap vnet7 --bypass-filters",
			`POST /v1/attach {"iface":"eth0","vm":"web","mac":"52:54:00:12:34:5a","tap":"vnet7","bypass_filters":true,"policy":{}}`},
		{"attach eth0 --vm web --mac 52:54:00:12:34:5a --vhost-user /s --socket-mode 0600 --socket-owner q:kvm --profile rsc",
			`POST /v1/attach {"iface":"eth0","vm":"web","mac":"52:54:00:12:34:5a","vhost_user":"/s","policy":{"profile":"rsc"},` +
				`"socket_mode":"0600","socket_owner":"q:kvm"}`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, _, errs := rscctl(t, append(strings.Fields(tt.args), "--socket="+fake.socket)...)
			if code != exitDone {
				t.Fatalf("exit %d: %s", code, errs)
			}
			if got := fake.last(); got != tt.want {
				t.Errorf("asked %s\nwant  %s", got, tt.want)
			}
		})
	}
}

func TestWrongUsageExitsWith2BeforeAnythingIsAsked(t *testing.T) {
	fake := newFake(t)
	for _, line := range []string{
		"", "foo", "why", "why a b", "why web --vm b", "why web -o yaml", "trace", "trace a b", "trace a --limit x", "trace a --limit 0", "trace a --limit -1", "trace a --flow bad", "trace a --flow=", "trace a --flow 1.2.3.4:0", "trace a --flow 1.2.3.4,5.6.7.8,9.9.9.9", "trace a --events seal,x", "trace a --events=", "trace a -o yaml", "trace a -w x",
		"capture", "capture a", "capture a -w=", "capture a b -w x", "capture a -w x --side up", "capture a -w x --side=", "capture a -w x --snaplen 63", "capture a -w x --snaplen 131073", "capture a -w x --seconds 0", "capture a -w x --seconds 86401", "capture a -w x --limit 1e3", "capture a -w x --flow ::g", "capture a -w x -o json", "capture a -w",
		"apply", "apply x", "apply -f", "apply -f /dev/null -o yaml", "export x", "export -o table", "top", "top x", "top --sort colour", "top --interval 0s", "top --interval=1", "top -o json", "doctor a b", "doctor --fix --undo", "doctor eth0 -o yaml", "doctor --socket /s", "doctor eth0 --fix=x", "attach", "attach eth0", "attach eth0 --vm a --mac 52:54:00:12:34:56",
		"attach eth0 --vm a --mac 52:54:00:12:34 --vhost-user /s", "attach eth0 --vm a --mac zz --vhost-user /s",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --vlan 4095",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --vlan 0",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --vlan x",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --mtu 67", "attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --mtu 65536",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --tap t --mtu 1500",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --socket-mode 999",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --connect --socket-mode 0600",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --hold soon",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --tap t", "attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s --bypass-filters",
		"attach eth0 --vm a --mac 52:54:00:12:34:56 --tap t --connect", "attach eth0 --vm a --mac 52:54:00:12:34:56 --tap t --allow-spoof",
		"attach eth0 eth1 --vm a --mac 52:54:00:12:34:56 --vhost-user /s", "attach eth0 --vm a --vm b", "attach eth0 --vm",
		"attach eth0 --tap tap0", "attach eth0 --vm=", "detach", "detach eth0 --vm=", "detach a b", "status a b", "status --bogus",
		"status -o yaml", "flows x", "flows --sort colour", "flows --limit 0", "flows --limit many", "flows --interval 1s",
		"flows --watch --interval 0s", "status --interval 1s", "status --watch --interval 1ms", "status --watch x y", "flows --watch=perhaps", "policy", "policy web", "policy set", "policy set web",
		"policy get", "policy get web --hold 1us", "policy set web --coalesce yes", "policy set web --profile tso",
		"policy set web --hold=-1us", "policy set web --max-bytes -1", "policy set web --exclude-port 65536",
		"policy set web --exclude-port none --exclude-port 1", "stats web", "run --log-level loud", "run --log-level=", "run --log-format xml", "version x", "version -o yaml", "version --json -o table", "run --metrics here", "run --metrics 1.2.3.4", "run --metrics", "run x", "replay",
		"replay a.pcap b.pcap", "replay a.pcap --profile x", "replay a.pcap --hold 2h", "replay a.pcap --features +magic",
		"replay a.pcap --features csum,-tso4", "demo x", "demo-child", "observe --all eth0",
		"observe --seconds 0", "observe --seconds -1", "observe --seconds 3601", "observe --seconds 99999999999999999999", "observe --seconds 1.5",
		"observe --seconds many", "observe -o yaml", "observe --watch", "observe eth0 --seconds",
	} {
		t.Run(line, func(t *testing.T) {
			t.Setenv("RSCCTL_SOCKET", fake.socket)
			code, out, errs := rscctl(t, strings.Fields(line)...)
			if code != exitUsage || out != "" {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit 2 and nothing printed", code, out, errs)
			}
			oneErrorLine(t, errs)
		})
	}
	if n := fake.count(); n != 0 {
		t.Errorf("the controller was asked %d times: %v", n, fake.asked)
	}
}

func oneErrorLine(t *testing.T, errs string) {
	t.Helper()
	if !strings.HasPrefix(errs, "rscctl: ") || strings.Count(errs, "\n") != 1 || !strings.HasSuffix(errs, "\n") {
		t.Errorf("stderr is not one line of ours: %q", errs)
	}
}

func TestNoControllerExitsWith3(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: stale}); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fd)
	for _, socket := range []string{filepath.Join(dir, "missing"), filepath.Join(dir, "no", "folder"), stale} {
		for _, verb := range []string{"status", "flows", "flows --watch", "stats", "policy get web", "policy set web --ipv4 on", "trace web", "capture web -w /nowhere/x",
			"policy reset web", "detach eth0", "attach eth0 --vm a --mac 52:54:00:12:34:56 --vhost-user /s"} {
			code, _, errs := rscctl(t, append(strings.Fields(verb), "--socket", socket)...)
			if code != exitNoController || !strings.Contains(errs, socket) {
				t.Errorf("%s on %s: exit %d, %q", verb, socket, code, errs)
			}
			oneErrorLine(t, errs)
		}
	}
}

func TestRefusalsKeepTheControllersWordsAndTheirExitCode(t *testing.T) {
	fake := newFake(t)
	for _, tt := range []struct {
		refuse api.Error
		code   int
		want   string
	}{
		{api.Error{Status: http.StatusConflict, ErrorBody: api.ErrorBody{Code: "held", Message: "eth0: held by a foreign XDP program: take it off"}},
			exitFailed, "rscctl: status: eth0: held by a foreign XDP program: take it off\n"},
		{api.Error{Status: http.StatusBadRequest, ErrorBody: api.ErrorBody{Code: "usage", Message: "eth9: no such interface:\nsee ip link"}},
			exitUsage, "rscctl: status: eth9: no such interface:; see ip link\n"},
		{api.Error{Status: http.StatusNotFound, ErrorBody: api.ErrorBody{Code: "unknown_iface", Message: "status: interface eth9: not attached"}},
			exitFailed, "rscctl: status: interface eth9: not attached\n"},
		{api.Error{Status: http.StatusBadGateway}, exitFailed, "rscctl: status: controller answered 502 Bad Gateway\n"},
	} {
		fake.refuse = &tt.refuse
		code, _, errs := rscctl(t, "status", "--socket", fake.socket)
		if code != tt.code || errs != tt.want {
			t.Errorf("exit %d, %q; want %d, %q", code, errs, tt.code, tt.want)
		}
	}
}

func TestSocketComesFromTheEnvironmentAndTheFlagWins(t *testing.T) {
	fake := newFake(t)
	t.Setenv("RSCCTL_SOCKET", fake.socket)
	if code, _, errs := rscctl(t, "status"); code != exitDone {
		t.Errorf("environment: exit %d: %s", code, errs)
	}
	if code, _, _ := rscctl(t, "status", "--socket", "/nowhere"); code != exitNoController {
		t.Errorf("flag over environment: exit %d", code)
	}
}

func TestWatchAppendsUntilInterrupted(t *testing.T) {
	fake := newFake(t)
	ctx, cancel := context.WithCancel(context.Background())
	var out, errs bytes.Buffer
	done := make(chan int)
	go func() {
		args := []string{"flows", "--watch", "--interval", "10ms", "--socket", fake.socket}
		done <- execute(ctx, args, streams{out: &out, err: &errs})
	}()
	for fake.count() < 3 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if code := <-done; code != exitDone || errs.Len() > 0 {
		t.Fatalf("exit %d, %q", code, errs.String())
	}
	if n := strings.Count(out.String(), "VERDICTS"); n < 2 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%d pages in %q", n, out.String())
	}
}

// A watch of JSON is JSON and nothing else, however it is asked for.
func TestAWatchOfJSONIsJSON(t *testing.T) {
	fake := newFake(t)
	for _, verb := range []string{"status", "stats", "flows"} {
		for _, how := range []string{"--json", "--output=json"} {
			ctx, cancel := context.WithCancel(t.Context())
			asked := fake.count()
			var out, errs bytes.Buffer
			done := make(chan int)
			go func() {
				done <- execute(ctx, []string{verb, "--watch", how, "--interval", "10ms", "--socket", fake.socket}, streams{out: &out, err: &errs})
			}()
			for fake.count() < asked+3 {
				time.Sleep(time.Millisecond)
			}
			cancel()
			if code := <-done; code != exitDone || errs.Len() > 0 {
				t.Fatalf("%s %s: exit %d, %q", verb, how, code, errs.String())
			}
			for d, n := json.NewDecoder(&out), 0; ; n++ {
				var page struct{ Schema int }
				if err := d.Decode(&page); err == io.EOF && n >= 2 {
					break
				} else if err != nil || page.Schema != api.Schema {
					t.Fatalf("%s %s: object %d: %v, %+v", verb, how, n, err, page)
				}
			}
		}
	}
}

// An apply that is interrupted says what it has done, and how much it has not begun.
func TestAnInterruptedApplySaysHowFarItCame(t *testing.T) {
	fake := newFake(t)
	text := "version: 1\nvms:\n"
	for i := range 1000 {
		text += fmt.Sprintf("- {name: v%d, iface: eth0, mac: \"52:54:00:00:%02x:%02x\", tap: t%d}\n", i, i>>8, i&255, i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- execute(ctx, []string{"apply", "-f", "-", "--socket", fake.socket}, streams{in: strings.NewReader(text), out: &out, err: &errs})
	}()
	for fake.count() < 3 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if code := <-done; code != exitFailed || !strings.Contains(errs.String(), "apply: interrupted: ") || !strings.Contains(errs.String(), "of 1000 steps were not begun") {
		t.Errorf("exit %d, %q", code, errs.String())
	}
	if oneErrorLine(t, errs.String()); !strings.HasPrefix(out.String(), "attach v0 to eth0\n") || strings.Contains(out.String(), "context") {
		t.Errorf("%.300q", out.String())
	}
}

// What a name or a library has in it never reaches the terminal as a command to it, and never makes a second line.
func TestAnErrorIsOneLineOfVisibleText(t *testing.T) {
	for name, want := range map[string]string{
		"a\x1b[31mred":                 `a\x1b[31mred: no such verb`,
		"a\nb\r\nc":                    "a; b; c: no such verb",
		"a\tb\x00\x07":                 `a b\x00\a: no such verb`,
		"\u202eb":                      `\u202eb: no such verb`,
		"Größe":                        "Größe: no such verb",
		strings.Repeat("x", 100_000):   strings.Repeat("x", longestWord-1) + "... no such verb",
		strings.Repeat("word ", 1_000): strings.Repeat("word ", 1_000) + ": no such verb",
	} {
		code, _, errs := rscctl(t, name)
		if oneErrorLine(t, errs); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%.100q: exit %d, %.400q", name, code, errs)
		}
		for _, r := range strings.TrimSuffix(errs, "\n") {
			if !unicode.IsPrint(r) {
				t.Errorf("%.100q: %q is written", name, r)
			}
		}
	}
}

func TestHelpNamesEveryVerbAndNoHiddenOne(t *testing.T) {
	code, out, errs := rscctl(t, "--help")
	if code != exitDone || errs != "" {
		t.Fatalf("exit %d, %q", code, errs)
	}
	for _, verb := range []string{"run", "attach", "detach", "status", "flows", "policy", "stats", "top", "trace", "capture", "observe", "replay", "demo"} {
		if !strings.Contains(out, "\n   "+verb+" ") {
			t.Errorf("%s is missing:\n%s", verb, out)
		}
		if code, out, _ := rscctl(t, verb, "--help"); code != exitDone || !strings.Contains(out, "rscctl "+verb) {
			t.Errorf("%s --help: exit %d\n%s", verb, code, out)
		}
	}
	if strings.Contains(out, "demo-child") {
		t.Errorf("hidden verb in\n%s", out)
	}
	for _, args := range [][]string{{"attach", "eth0", "-h"}, {"help", "attach"}, {"policy", "set", "web", "--help"}, {"-v"}} {
		if code, out, errs := rscctl(t, args...); code != exitDone || out == "" || errs != "" {
			t.Errorf("%v: exit %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestMain(m *testing.M) { testscript.Main(tests{m}, map[string]func(){"rscctl": main}) }

// tests run without the places that the machine's own controller may be known by; scripts, which run as commands, set their own.
type tests struct{ *testing.M }

func (t tests) Run() int {
	for _, name := range []string{"RSCCTL_SOCKET", "RSCCTL_STATE", "RSCCTL_BPFFS"} {
		os.Unsetenv(name)
	}
	code := t.M.Run()
	if builtOne {
		bin, _ := binary()
		os.RemoveAll(filepath.Dir(bin))
	}
	return code
}

func TestAWaitingVMIsNeverShownAsNone(t *testing.T) {
	st := api.Status{Waiting: []api.Waiting{{VM: "web", Iface: "eth0", Cause: "interface eth0: no such device"}}}
	var out bytes.Buffer
	if err := (statusView{st: &st, now: time.Now()}).print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 VM waits", "web", "interface eth0: no such device"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "no VM is attached") || strings.Contains(out.String(), "good") {
		t.Errorf("shown as none or as good:\n%s", out.String())
	}
}

func TestMetadataIsUnknownBeforeTheFirstFrame(t *testing.T) {
	for want, known := range map[string]*bool{"-": nil, "yes": known(true), "no": known(false)} {
		st := api.Status{Interfaces: []api.Interface{{Name: "eth0", Metadata: known, Queues: make([]api.Queue, 7)}}}
		var out bytes.Buffer
		if err := (statusView{st: &st, now: time.Now()}).print(&out); err != nil {
			t.Fatal(err)
		}
		row := regexp.MustCompile(`(?m)^eth0  .*  ` + want + `\s+7 `)
		if !row.MatchString(out.String()) {
			t.Errorf("META is not %q in\n%s", want, out.String())
		}
		if strings.Contains(out.String(), "frames of eth0 are parsed twice") != (want == "no") {
			t.Errorf("META is %q and that is not explained in\n%s", want, out.String())
		}
	}
}

// A flag's help names its value as the text does, in capitals, and the text goes on behind it where the sentence needs it.
func TestHelpNamesEachValueOnceAndInItsPlace(t *testing.T) {
	flag := regexp.MustCompile(`(?m)^   --[a-z-]+(?: ([^-\s]\S*))?(?:, -\w \S+| \[ --.* \])?  +(.*)$`)
	for _, verb := range []string{"run", "attach", "detach", "status", "flows", "policy get", "policy set", "policy reset", "stats", "top", "trace", "capture", "observe"} {
		_, out, _ := rscctl(t, append(strings.Fields(verb), "--help")...)
		lines := flag.FindAllStringSubmatch(out, -1)
		if len(lines) < 2 {
			t.Errorf("%s: %d flags found in\n%s", verb, len(lines), out)
		}
		for _, l := range lines {
			if !regexp.MustCompile(`^(|on\|off|[A-Z:]+(\[/[A-Z]+\])?)$`).MatchString(l[1]) {
				t.Errorf("%s: value %q in %q", verb, l[1], l[0])
			}
			if l[1] != "" && regexp.MustCompile(`limit `+regexp.QuoteMeta(l[1])+`( \(|$)`).MatchString(l[2]) {
				t.Errorf("%s: ends in a stray value: %q", verb, l[0])
			}
		}
	}
}
