package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// listener is a verb that runs on: trace or capture.
type listener struct {
	r    *rig
	cmd  *exec.Cmd
	out  syncBuffer
	errs syncBuffer
	done chan error
	once sync.Once
}

// listen starts a verb and waits until it has begun, which its first line says.
func (r *rig) listen(args ...string) *listener {
	r.t.Helper()
	l := &listener{r: r, cmd: exec.Command(product, args...), done: make(chan error, 1)}
	l.cmd.Env = append(os.Environ(), "RSCCTL_SOCKET="+filepath.Join(r.dir, "ctl.sock"))
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.errs
	if err := l.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() { l.done <- l.cmd.Wait() }()
	r.t.Cleanup(func() { l.once.Do(func() { _ = l.cmd.Process.Kill(); <-l.done }) })
	r.eventually(args[0]+" begins", func() error {
		if l.out.String() == "" {
			return fmt.Errorf("nothing is said; %s", &l.errs)
		}
		return nil
	})
	return l
}

// end waits for the verb's end, after a signal unless it is 0, and returns its exit code.
func (l *listener) end(sig syscall.Signal) (code int) {
	l.r.t.Helper()
	if sig != 0 {
		_ = l.cmd.Process.Signal(sig)
	}
	l.once.Do(func() {
		select {
		case <-l.done:
		case <-time.After(netnstest.Patience(20 * time.Second)):
			_ = l.cmd.Process.Kill()
			<-l.done
			l.r.t.Errorf("%v did not end", l.cmd.Args[1:])
		}
	})
	return l.cmd.ProcessState.ExitCode()
}

// events are the lines of a trace -o json.
func (l *listener) events() (all []api.TraceEvent) {
	l.r.t.Helper()
	for line := range strings.Lines(l.out.String()) {
		var e api.TraceEvent
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			l.r.t.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// captured is a packet of a capture's file.
type captured struct {
	data    []byte
	length  int
	comment string
}

// readCapture reads a whole file.
func readCapture(t *testing.T, path string) (all []captured) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(bufio.NewReader(f), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, opt, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return all
		}
		if err != nil || len(opt.Comments) != 1 {
			t.Fatalf("packet %d of %s: %v, %v", len(all), path, opt.Comments, err)
		}
		all = append(all, captured{data, ci.Length, opt.Comments[0]})
	}
}

// A trace of real TCP has as many events as the counters, reason by reason, all of the flow; what is given up is in it too, with the
// reason.
func TestATraceTellsWhatTheCountersCount(t *testing.T) {
	r := newRig(t, netnstest.Options{Queues: 2})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	l := r.listen("trace", "vm0", "-o", "json")
	netnstest.Bulk(t, r.net.A, g.side, 2<<20, false, time.Minute)
	table := r.listen("trace", "vm0", "--events", "drop", "--limit", "1")
	g.side.Inject(t, pt.TCP{SrcMAC: [6]byte{2, 9, 9, 9, 9, 9}, Len: 10}.Frame())
	if code := table.end(0); code != 0 || !strings.Contains(table.out.String(), "drop   source_mac") || !strings.Contains(table.out.String(), "02:09:09:09:09:09 > ") {
		t.Errorf("exit %d\n%s%s", code, &table.out, &table.errs)
	}
	r.eventually("the trace has what the counters have", func() error {
		var st api.Stats
		r.json(&st, "stats")
		counts := map[api.TraceEventKind]map[string]uint64{}
		var lost uint64
		for _, e := range l.events() {
			if counts[e.Event] == nil {
				counts[e.Event] = map[string]uint64{}
			}
			counts[e.Event][e.Reason]++
			if e.Event == api.TraceSeal && (e.Dst != "10.77.0.10" || e.Packets < 2) {
				t.Fatalf("a superframe of another flow: %+v", e)
			}
			lost += e.Count
		}
		for event, want := range map[api.TraceEventKind]map[string]uint64{api.TraceSeal: st.VMs[0].Sealed, api.TracePass: st.VMs[0].Passed, api.TraceDrop: st.VMs[0].TxDropped} {
			for reason := range merge(want, counts[event]) {
				// What was before the trace began, when the guest's stack came up, is in the counters alone.
				got, missing := counts[event][reason], uint64(0)
				if got < want[reason] {
					missing = want[reason] - got
				}
				if got > want[reason] || missing > lost && (got == 0 || event == api.TraceSeal) {
					return fmt.Errorf("%s %s: %d told, %d counted, %d lost in all", event, reason, got, want[reason], lost)
				}
			}
		}
		return nil
	})
	if code := l.end(syscall.SIGINT); code != 0 || l.errs.String() != "" {
		t.Errorf("interrupted: exit %d, %s", code, &l.errs)
	}
}

func merge(maps ...map[string]uint64) map[string]bool {
	all := map[string]bool{}
	for _, m := range maps {
		for k := range m {
			if k != "not_ip" && k != "not_tcp" { // what the guest's stack says by itself, whenever it likes
				all[k] = true
			}
		}
	}
	return all
}

// What a capture has on the wire's side are the packets as they came and went, on the guest's side what it got, headers and all.
// Interrupted, both are whole files.
func TestACaptureHasBothSides(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	file := func(name string) string { return filepath.Join(r.dir, name) }
	wire := r.listen("capture", "vm0", "-w", file("wire"), "--flow", "10.77.0.10")
	guest := r.listen("capture", "vm0", "-w", file("guest"), "--side", "guest", "--flow", "10.77.0.10")
	short := r.listen("capture", "vm0", "-w", file("short"), "--snaplen", "100", "--limit", "50")
	timed := r.listen("capture", "vm0", "-w", file("timed"), "--seconds", "1")
	const bytes = 2 << 20
	netnstest.Bulk(t, r.net.A, g.side, bytes, false, time.Minute)
	sizes := func() (all int64) {
		for _, name := range []string{"wire", "guest"} {
			if info, err := os.Stat(file(name)); err == nil {
				all += info.Size()
			}
		}
		return all
	}
	for was := int64(-1); was != sizes(); time.Sleep(500 * time.Millisecond) { // nothing is still on its way
		was = sizes()
	}
	for name, l := range map[string]*listener{"wire": wire, "guest": guest, "short": short, "timed": timed} {
		sig := syscall.SIGINT
		if name == "short" || name == "timed" {
			sig = 0
		}
		if code := l.end(sig); code != 0 || l.errs.String() != "" || !strings.Contains(l.out.String(), "frames captured") {
			t.Errorf("%s: exit %d, %s%s", name, code, &l.out, &l.errs)
		}
	}
	in, supers, out := 0, 0, 0
	for _, p := range readCapture(t, file("wire")) {
		switch {
		case strings.Contains(p.comment, ", to vm0: "):
			in += len(p.data)
		case strings.HasSuffix(p.comment, ", from vm0: sent"):
			out++
		default:
			t.Errorf("comment %q", p.comment)
		}
		if len(p.data) != p.length || p.length > 1514 {
			t.Errorf("a packet of %d bytes, %d of them captured", p.length, len(p.data))
		}
	}
	got := 0
	for _, p := range readCapture(t, file("guest")) {
		got += p.length
		if p.length > 1514 {
			supers++
			if !strings.Contains(p.comment, "superframe of ") || !strings.Contains(p.comment, "flags=needs_csum gso_type=tcpv4 gso_size=1448 hdr_len=66 csum_start=34 csum_offset=16 num_buffers=") {
				t.Errorf("a frame of %d bytes: %s", p.length, p.comment)
			}
		}
	}
	whole := !strings.Contains(wire.out.String()+guest.out.String(), "lost")
	if out == 0 || supers == 0 || whole && (in < bytes || got < bytes || got > in) {
		t.Errorf("%d bytes came, %d packets went, the guest got %d bytes, %d superframes; nothing lost: %t", in, out, got, supers, whole)
	}
	if p := readCapture(t, file("short")); len(p) != 50 || len(p[49].data) > 100 {
		t.Errorf("%d packets, the last of %d bytes", len(p), len(p[len(p)-1].data))
	}
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("read by gopacket alone: there is no tshark")
		return
	}
	for _, name := range []string{"wire", "guest"} {
		text, err := exec.Command("tshark", "-r", file(name), "-T", "fields", "-e", "frame.comment", "-Y", "tcp.len > 0").CombinedOutput()
		if err != nil || strings.Contains(string(text), "cut short") || strings.Count(string(text), "vm0: ") < supers {
			t.Errorf("tshark, %s: %v\n%.2000s", name, err, text)
		}
	}
}

// However what is listened to ends, the listener hears why, its file is whole, and it fails.
func TestListenersHearOfTheEnd(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	for what, c := range map[string]struct {
		end  func()
		want string
	}{
		"replace": {func() { r.replace() }, "another controller takes over"},
		"detach":  {func() { r.must("detach", r.net.B.Dev) }, "VM vm0 was taken off " + r.net.B.Dev},
		"stop":    {r.stop, "the controller stops"},
		"kill":    {r.kill, "is gone"},
	} {
		if r.run == nil {
			r.start()
		}
		if out, _ := r.cli("policy", "get", "vm0"); strings.Contains(out, "no such VM") {
			r.attach("vm0", macA)
		}
		path := filepath.Join(r.dir, what)
		trace, capture := r.listen("trace", "vm0"), r.listen("capture", "vm0", "-w", path)
		r.net.A.Inject(t, pt.TCP{DstMAC: [6]byte(mac(t, macA)), Len: 300}.Frame()) // dropped: there is no guest
		r.eventually("the drop is told", func() error {
			if !strings.Contains(trace.out.String(), "drop   port_down") {
				return errNotYet
			}
			return nil
		})
		c.end()
		for _, l := range []*listener{trace, capture} {
			if code := l.end(0); code != 1 || !strings.Contains(l.errs.String(), c.want) || strings.Count(l.errs.String(), "\n") != 1 {
				t.Errorf("%s: exit %d, %q", what, code, &l.errs)
			}
		}
		if p := readCapture(t, path); len(p) == 0 || !strings.HasSuffix(p[0].comment, "to vm0: dropped (port_down)") {
			t.Errorf("%s: %d packets: %+v", what, len(p), p)
		}
	}
}

// A full disk ends a capture with a message; what is in the file is whole. A VM on its own tap is listened to like any other, as far
// as its frames come by.
func TestACaptureOfATapAndAFullDisk(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	dir := filepath.Join(r.dir, "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	r.steered()
	full := r.listen("capture", "vm0", "-w", filepath.Join(dir, "full"))
	guest := r.listen("capture", "vm0", "-w", filepath.Join(r.dir, "guest"), "--side", "guest")
	trace := r.listen("trace", "vm0", "-o", "json", "--events", "seal")
	netnstest.Bulk(t, r.net.A, vm.Guest, 2<<20, false, time.Minute)
	if code := full.end(0); code != 1 || !strings.Contains(full.errs.String(), "full: no space left on device") || !strings.Contains(full.out.String(), "tcpdump -i vm0") {
		t.Errorf("exit %d, %s%s", code, &full.out, &full.errs)
	}
	if n := len(readCapture(t, filepath.Join(dir, "full"))); n < 50 {
		t.Errorf("%d packets in 256 KiB", n)
	}
	if code := guest.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, %s", code, &guest.errs)
	}
	largest := 0
	for _, p := range readCapture(t, filepath.Join(r.dir, "guest")) {
		largest = max(largest, p.length)
	}
	if n := len(trace.events()); largest < mergedMean || n < 2 {
		t.Errorf("the largest frame has %d bytes, %d events", largest, n)
	}
	trace.end(syscall.SIGHUP)
}
