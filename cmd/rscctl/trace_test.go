package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/rscctl/rscctl/controller/api"
)

const sampleTime = 1767225600123456789 // 2026-01-01

func sampleEvents() []api.TraceEvent {
	flow := api.TraceEvent{
		TimeNS: sampleTime, Direction: api.ToGuest, Packets: 1, Segments: 1, Len: 1514, Src: "10.0.0.1", Dst: "10.0.0.2", SrcPort: 43210, DstPort: 443,
		SrcMAC: "52:54:00:00:00:01", DstMAC: "52:54:00:00:00:02", EtherType: 0x800,
	}
	seal, pass, spoof, arp := flow, flow, flow, flow
	seal.Event, seal.Reason, seal.Packets, seal.Segments, seal.Len, seal.HeldNS = api.TraceSeal, "max_bytes", 45, 45, 65226, 31000
	pass.Event, pass.Reason, pass.Src, pass.Dst, pass.Queue = api.TracePass, "pure_ack", "fd00::1", "fd00::2", 1
	spoof.Event, spoof.Reason, spoof.Direction = api.TraceDrop, "source_mac", api.ToWire
	arp.Event, arp.Reason, arp.Src, arp.Dst, arp.SrcPort, arp.DstPort, arp.EtherType = api.TracePass, "not_ip", "", "", 0, 0, 0x806
	return []api.TraceEvent{
		{Event: api.TraceBegin, Schema: api.Schema, VM: "web", Iface: "eth0"}, seal, pass,
		{Event: api.TraceLost, Count: 12345}, spoof, arp,
	}
}

func eventLines(events ...api.TraceEvent) (b []byte) {
	for _, e := range events {
		line, _ := json.Marshal(e)
		b = append(append(b, line...), '\n')
	}
	return b
}

// streaming is a controller that writes b and ends the answer.
func streaming(t *testing.T, path string, b []byte) *fakeController {
	f := newFake(t)
	f.streams = map[string]func(http.ResponseWriter){path: func(w http.ResponseWriter) { w.Write(b) }}
	return f
}

func TestATraceIsPrintedAsItComes(t *testing.T) {
	fake := streaming(t, "/v1/trace", eventLines(sampleEvents()...))
	for name, more := range map[string][]string{"trace.golden": nil, "trace.json.golden": {"-o", "json"}} {
		code, out, errs := rscctl(t, append([]string{"trace", "web", "--limit", "4", "--flow", "10.0.0.1:43210 > 10.0.0.2", "--events", "seal,drop,pass", "--socket", fake.socket}, more...)...)
		if code != exitDone || errs != "" {
			t.Errorf("exit %d, %q", code, errs)
		}
		golden(t, name, regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.123456`).ReplaceAllString(out, "HH:MM:SS.123456")) // the zone is the machine's
	}
	if want := "GET /v1/trace?events=seal%2Cdrop%2Cpass&flow=10.0.0.1%3A43210+%3E+10.0.0.2&vm=web "; fake.last() != want {
		t.Errorf("asked %s", fake.last())
	}
}

// A stream that ends before it has brought what was asked for is a failure, in one line that says why.
func TestATraceThatEndsSaysWhy(t *testing.T) {
	begin := eventLines(sampleEvents()[:2]...)
	for name, c := range map[string]struct {
		stream []byte
		want   string
	}{
		"detached":  {append(begin, eventLines(api.TraceEvent{Event: api.TraceEnd, Why: "VM web was taken off eth0"})...), "VM web was taken off eth0"},
		"cut":       {begin, "is gone"},
		"mid-line":  {append(begin, `{"event":"se`...), "cannot be read"},
		"no stream": {nil, "is gone"},
		"garbage":   {[]byte("\x00\x01\n"), "cannot be read"},
		"endless":   {bytes.Repeat([]byte("x"), 1<<20), "cannot be read"},
	} {
		fake := streaming(t, "/v1/trace", c.stream)
		code, _, errs := rscctl(t, "trace", "web", "--socket", fake.socket)
		if code != exitFailed || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, %q", name, code, errs)
		}
		oneErrorLine(t, errs)
	}
}

func sampleHead() api.CaptureHead {
	return api.CaptureHead{Schema: api.Schema, VM: "web", Iface: "eth0", Side: api.SideWire, SnapLen: api.MaxSnapLen, Reasons: []string{"psh", "syn"}, Deeds: []string{"seal", "pass", "hold", "drop", "deliver", "send"}}
}

// sampleCapture is a stream of frames, the second behind a loss.
func sampleCapture(frames int) []byte {
	line, _ := json.Marshal(sampleHead())
	b := append(line, '\n')
	for i := range frames {
		if i == 1 {
			b = (&api.CaptureBlock{Kind: api.BlockLost, Count: 7}).Append(b)
		}
		data := bytes.Repeat([]byte{byte(i)}, 60+i%2000)
		b = (&api.CaptureBlock{Kind: api.BlockFrame, Deed: 1, Reason: 1, ToWire: i%2 == 1, Queue: 3, Len: uint32(len(data)) + 5, Packets: 1, Segments: 1, TimeNS: sampleTime + int64(i), Data: data}).Append(b)
	}
	return b
}

func captureEnd(b []byte, why string) []byte {
	return (&api.CaptureBlock{Kind: api.BlockEnd, Data: []byte(why)}).Append(b)
}

// inCapture reads a whole file and returns its packets' comments.
func inCapture(t *testing.T, file []byte) (comments []string) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	if r.LinkType() != layers.LinkTypeEthernet {
		t.Errorf("link type %v", r.LinkType())
	}
	for i := 0; ; i++ {
		data, ci, opt, err := r.ReadPacketDataWithOptions()
		if err != nil {
			if err.Error() != "EOF" {
				t.Errorf("behind packet %d: %v", i, err)
			}
			return comments
		}
		if ci.Timestamp.UnixNano() != sampleTime+int64(i) || ci.Length != len(data)+5 || data[0] != byte(i) || len(opt.Comments) != 1 {
			t.Fatalf("packet %d: %+v, %v", i, ci, opt)
		}
		if i == 1 && (opt.DropCount == nil || *opt.DropCount != 7) {
			t.Errorf("no loss is told in front of packet 1: %+v", opt)
		}
		comments = append(comments, opt.Comments[0])
	}
}

func TestACaptureIsAWholeFileHoweverItEnds(t *testing.T) {
	for name, c := range map[string]struct {
		stream []byte
		args   string
		code   int
		frames int
		say    string
		errs   string
	}{
		"limit":       {sampleCapture(40), "--limit 20", exitDone, 20, "20 frames captured, 7 lost", ""},
		"detached":    {captureEnd(sampleCapture(5), "VM web was taken off eth0"), "", exitFailed, 5, "5 frames captured", "VM web was taken off eth0"},
		"cut":         {sampleCapture(300), "", exitFailed, 300, "300 frames captured", "is gone"},
		"mid-frame":   {sampleCapture(3)[:len(sampleCapture(3))-1], "", exitFailed, 2, "2 frames captured", "is gone"},
		"no frame":    {sampleCapture(0), "", exitFailed, 0, "0 frames captured", "is gone"},
		"a bad block": {append(sampleCapture(4), make([]byte, 100)...), "", exitFailed, 4, "4 frames captured", "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			fake := streaming(t, "/v1/capture", c.stream)
			code, out, errs := rscctl(t, append(strings.Fields("capture web -w "+path+" --socket "+fake.socket), strings.Fields(c.args)...)...)
			if code != c.code || !strings.Contains(out, c.say) || !strings.Contains(errs, c.errs) {
				t.Errorf("exit %d, %q, %q", code, out, errs)
			}
			if c.code != exitDone {
				oneErrorLine(t, errs)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v: a VM's data can be read by others, or %v", info.Mode(), err)
			}
			comments := inCapture(t, file)
			if len(comments) != c.frames {
				t.Errorf("%d packets in the file", len(comments))
			}
			if len(comments) > 1 && (comments[0] != "eth0 queue 3, to web: passed alone (syn)" || comments[1] != "eth0 queue 3, from web: passed alone (syn)") {
				t.Errorf("comments %q", comments[:2])
			}
		})
	}
}

func TestACaptureThatIsInterruptedIsWholeAndDone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	fake := newFake(t)
	sent := make(chan struct{})
	fake.streams = map[string]func(http.ResponseWriter){"/v1/capture": func(w http.ResponseWriter) {
		w.Write(sampleCapture(10))
		w.(http.Flusher).Flush()
		<-sent
	}}
	ctx, interrupt := context.WithCancel(context.Background())
	var out, errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- execute(ctx, []string{"capture", "web", "-w", path, "--socket", fake.socket, "--snaplen=99", "--side=guest"}, streams{out: &out, err: &errs})
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if file, _ := os.ReadFile(path); bytes.Count(file, []byte("passed alone")) == 10 { // all of it is there while it lasts
			break
		} else if time.Now().After(end) {
			t.Fatal("never written")
		}
	}
	interrupt()
	code := <-done
	close(sent)
	if code != exitDone || errs.Len() > 0 || !strings.Contains(out.String(), "10 frames captured, 7 lost") {
		t.Errorf("exit %d, %q, %q", code, out.String(), errs.String())
	}
	file, _ := os.ReadFile(path)
	if n := len(inCapture(t, file)); n != 10 {
		t.Errorf("%d packets in the file", n)
	}
	if want := "GET /v1/capture?side=guest&snaplen=99&vm=web "; fake.last() != want {
		t.Errorf("asked %s", fake.last())
	}
}

func TestACaptureCanBePiped(t *testing.T) {
	fake := streaming(t, "/v1/capture", sampleCapture(8))
	code, out, errs := rscctl(t, "capture", "web", "-w", "-", "--limit", "8", "--socket", fake.socket)
	if n := len(inCapture(t, []byte(out))); code != exitDone || n != 8 || !strings.Contains(errs, "8 frames captured") {
		t.Errorf("exit %d, %d packets, %q", code, n, errs)
	}
}

func TestACaptureThatCannotBeWrittenSaysSo(t *testing.T) {
	dir := t.TempDir()
	fake := streaming(t, "/v1/capture", sampleCapture(3000))
	for path, want := range map[string]string{
		"/dev/full":                   "no space left on device",
		filepath.Join(dir, "no", "x"): "no such file or directory",
		dir:                           "is a directory",
	} {
		code, _, errs := rscctl(t, "capture", "web", "-w", path, "--socket", fake.socket)
		if code != exitFailed || !strings.Contains(errs, path) || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d, %q", path, code, errs)
		}
		oneErrorLine(t, errs)
	}
	fake.refuse = &api.Error{Status: http.StatusNotFound, ErrorBody: api.ErrorBody{Code: "unknown_vm", Message: "capture: VM web: no such VM is attached"}}
	path := filepath.Join(dir, "kept")
	if err := os.WriteFile(path, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := rscctl(t, "capture", "web", "-w", path, "--socket", fake.socket)
	if b, _ := os.ReadFile(path); code != exitFailed || string(b) != "older" {
		t.Errorf("exit %d, %q, the file is %q", code, errs, b)
	}
	fake.refuse = nil
	for name, head := range map[string]string{"garbage": "\xff\n", "nothing": "", "endless": strings.Repeat("x", 1<<20)} {
		fake.streams["/v1/capture"] = func(w http.ResponseWriter) { fmt.Fprint(w, head) }
		if code, _, errs := rscctl(t, "capture", "web", "-w", filepath.Join(dir, name), "--socket", fake.socket); code != exitFailed {
			t.Errorf("%s: exit %d, %q", name, code, errs)
		}
	}
}
