package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const captures = "../../controller/replay/testdata"

func capture(name string) string { return filepath.Join(captures, name+".in.pcap") }

func file(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReplayWritesTheGoldenFiles(t *testing.T) {
	for _, tt := range []struct{ name, flags string }{
		{"train-max-bytes-then-psh", ""},
		{"hold-0-bursts-of-equal-time", "--hold 0"},
		{"rsc-window-updates-absorbed", "--profile rsc"},
		{"rsc-not-negotiated-is-gro", "--profile rsc --features -rsc"},
		{"without-tso6", "--features csum,tso4"},
		{"pcapng-interfaces-and-resolutions", "--hold 50us"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out.pcap")
			code, lines, errs := rscctl(t, append([]string{"replay", capture(tt.name), "--json", "-w", out}, strings.Fields(tt.flags)...)...)
			if code != exitDone || errs != "" {
				t.Fatalf("exit %d, %q", code, errs)
			}
			if lines != file(t, filepath.Join(captures, tt.name+".json")) {
				t.Errorf("JSON differs:\n%s", lines)
			}
			if file(t, out) != file(t, filepath.Join(captures, tt.name+".out.pcap")) {
				t.Error("the pcap differs")
			}
		})
	}
}

func TestReplayOfAnAccessPort(t *testing.T) {
	code, out, errs := rscctl(t, "replay", capture("access-port-gets-its-vlan-only"), "--vlan", "100")
	if code != exitDone || errs != "" {
		t.Fatalf("exit %d, %q", code, errs)
	}
	for _, want := range []string{"not for this port  5", "vlan_foreign"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, id := range []string{"0", "4095", "-1"} {
		if code, _, errs := rscctl(t, "replay", capture("vlan-tagged"), "--vlan="+id); code != exitUsage || !strings.Contains(errs, "say 1 to 4094") {
			t.Errorf("--vlan %s: exit %d, %q", id, code, errs)
		}
	}
}

func TestReplayPrintsATableForPeople(t *testing.T) {
	code, out, errs := rscctl(t, "replay", capture("train-max-bytes-then-psh"))
	if code != exitDone || errs != "" {
		t.Fatalf("exit %d, %q", code, errs)
	}
	golden(t, "replay.golden", out)
}

func TestReplayReadsStandardInput(t *testing.T) {
	var out, errs bytes.Buffer
	in := strings.NewReader(file(t, capture("without-tso6")))
	if code := execute(context.Background(), []string{"replay", "-", "--json"}, streams{in: in, out: &out, err: &errs}); code != exitDone {
		t.Fatalf("exit %d, %q", code, errs.String())
	}
	if !strings.Contains(out.String(), `"packets":[0,`) {
		t.Errorf("got %s", out.String())
	}
}

// A pipe that falls silent does not keep the command from ending when it is told to.
func TestReplayOfASilentPipeEndsWithItsContext(t *testing.T) {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.WriteString(w, file(t, capture("without-tso6")))
		cancel()
	}()
	var out, errs bytes.Buffer
	if code := execute(ctx, []string{"replay", "-", "--json"}, streams{in: r, out: &out, err: &errs}); code != exitFailed {
		t.Errorf("exit %d", code)
	}
	if !strings.Contains(out.String(), "context canceled") || strings.Contains(errs.String(), "damaged") {
		t.Errorf("printed %s and %s", out.String(), errs.String())
	}
}

// TestDamageExitsWith1AndStillSummarises holds for every way a capture can be no good.
func TestDamageExitsWith1AndStillSummarises(t *testing.T) {
	dir := t.TempDir()
	rubbish := filepath.Join(dir, "rubbish")
	if err := os.WriteFile(rubbish, []byte("this is no capture"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{capture("damaged-in-the-middle"), rubbish, filepath.Join(dir, "missing"), dir} {
		code, out, errs := rscctl(t, "replay", path, "--json")
		if code != exitFailed || !strings.Contains(errs, filepath.Base(path)) {
			t.Errorf("%s: exit %d, %q", path, code, errs)
		}
		oneErrorLine(t, errs)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var last struct {
			Summary struct {
				Schema int
				Frames int
				Error  *string
			}
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatalf("%s: %v in %q", path, err, out)
		}
		s := last.Summary
		if s.Schema != 1 || s.Error == nil || !strings.Contains(errs, *s.Error) || s.Frames != len(lines)-1 {
			t.Errorf("%s: summary %s for %q", path, lines[len(lines)-1], errs)
		}
	}
}

func TestReplayNeverWritesOverItsInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.pcap")
	want := file(t, capture("without-tso6"))
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{path, link} {
		code, _, errs := rscctl(t, "replay", path, "-w", out)
		if code != exitFailed || file(t, path) != want {
			t.Errorf("-w %s: exit %d, %q", out, code, errs)
		}
		oneErrorLine(t, errs)
	}
}

func TestReplaySaysWhenItCannotWrite(t *testing.T) {
	code, _, errs := rscctl(t, "replay", capture("without-tso6"), "-w", filepath.Join(t.TempDir(), "no", "folder"))
	if code != exitFailed {
		t.Errorf("exit %d", code)
	}
	oneErrorLine(t, errs)
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	code, _, errs = rscctl(t, "replay", capture("without-tso6"), "-w", "/dev/full")
	if code != exitFailed || !strings.Contains(errs, "no space left") {
		t.Errorf("full: exit %d, %q", code, errs)
	}
	oneErrorLine(t, errs)
}
