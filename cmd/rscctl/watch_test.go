package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/terminal"
)

// Every page fits 80 columns, whatever the names, the numbers and the texts are: nothing is cut for it.
func TestStatusFits80Columns(t *testing.T) {
	st := sampleStatus()
	name := strings.Repeat("a-very-long-name-", 3)
	nic := &st.Interfaces[0]
	nic.Name = "enp129s0f1np15x"
	nic.Driver = "virtio_net"
	nic.MTU = 65535
	nic.Metadata = known(false)
	nic.Changes = append(nic.Changes, strings.Repeat("something was changed, ", 9))
	for i := range nic.Queues {
		q := &nic.Queues[i]
		q.ID, q.RxFrames, q.TxFrames, q.RxRingFull, q.Chunks, q.Held, q.CPUNS = 127, 987654321098765, 987654321098, 12345678, 8192, 8000, 1e15
	}
	nic.Ports[0].VM, nic.Ports[0].Features = name, strings.Fields(strings.Repeat("GUEST_ANNOUNCE ", 20))
	nic.Ports[0].Socket = "/run/" + strings.Repeat("x", 102)
	nic.Ports[1].StopReason = strings.Repeat("nothing but bad descriptors ", 9)
	st.Waiting[0].VM, st.Waiting[0].Iface = name, nic.Name
	st.Health.Reasons = append(st.Health.Reasons, strings.Repeat("it is bad, ", 20))
	for _, sample := range []api.Status{sampleStatus(), st} {
		for _, watched := range []bool{false, true} {
			var out strings.Builder
			if err := (statusView{st: &sample, now: sample.StartedAt.Add(300 * time.Hour), watched: watched}).print(&out); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				if n := cells(strings.TrimSuffix(line, "\n")); n > 80 {
					t.Errorf("%d columns: %s", n, line)
				}
			}
			if sample.Interfaces[0].Name == nic.Name && strings.Count(out.String(), name) < 2 {
				t.Errorf("a name is cut:\n%s", out.String())
			}
		}
	}
}

// watched runs a verb with --watch at a terminal.
func watched(t *testing.T, width, height int, args ...string) *terminal.Terminal {
	t.Helper()
	cmd := exec.Command(built(t), append(args, "--watch", "--interval", "20ms")...)
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "TZ=UTC")
	return terminal.Start(t, cmd, width, height)
}

var headed = regexp.MustCompile(`^\d\d:\d\d:\d\d, every 20ms\n`)

// A watched page begins with the time, keeps its top, stays inside the window, follows it, and says how much it leaves out.
func TestAWatchedPageFitsItsWindow(t *testing.T) {
	fake := newFake(t)
	for _, verb := range []string{"status", "stats", "flows"} {
		t.Run(verb, func(t *testing.T) {
			term := watched(t, 60, 12, verb, "--socket", fake.socket)
			term.Await("a page", func(text string) bool {
				return headed.MatchString(text) && (verb == "flows" || strings.Contains(lastLine(text), "more lines"))
			})
			for _, size := range [][2]int{{60, 12}, {20, 5}, {132, 60}, {30, 9}} {
				width, height := size[0], size[1]
				term.Resize(width, height)
				term.Await(fmt.Sprintf("a page inside %dx%d", width, height), func(text string) bool {
					lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
					for _, l := range lines {
						if cells(l) > width {
							return false
						}
					}
					return len(lines) <= height && headed.MatchString(text)
				})
			}
			term.Type("\x03")
			if code := term.End(); code != exitDone {
				t.Errorf("exit %d", code)
			}
		})
	}
}

// A watch of stats and status says what has changed, and how much that is a second.
func TestAWatchShowsWhatHasChanged(t *testing.T) {
	was, now := sampleStats(), sampleStats()
	v := &now.VMs[0]
	v.RxPackets += 3000
	v.RxBytes += 3_000_000
	v.Sealed = map[string]uint64{"max_bytes": 2060, "psh": 150, "deadline": 50, "fin": 4}
	v.Dropped = map[string]uint64{"guest_no_buffers": 14}
	q := now.Queues["eth0/0"]
	q.RxFrames, q.CPUNS, q.RxRingFull = q.RxFrames+3000, q.CPUNS+1e9, 8
	now.Queues["eth0/0"] = q
	now.VMs = append(now.VMs, api.VMStats{VM: "young", Iface: "eth0", RxPackets: 7})
	var out strings.Builder
	if err := (statsChange{change[api.Stats]{&was, &now, 2}}).print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "stats-watch.golden", out.String())
	out.Reset()
	if err := (statsChange{change[api.Stats]{nil, &now, 0}}).print(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "+") || strings.Contains(out.String(), "Inf") || strings.Contains(out.String(), "NaN") {
		t.Errorf("a first page knows of no change:\n%s", out.String())
	}

	before, st := sampleStatus(), sampleStatus()
	st.Interfaces[0].Queues[0].RxFrames += 5000
	st.Interfaces[0].Queues[0].CPUNS += 5e8
	out.Reset()
	if err := (statusView{st: &st, now: st.StartedAt.Add(192 * time.Second), watched: true, was: &before, seconds: 2}).print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status-watch.golden", out.String())

	list, seen := sampleFlows(), sampleFlows()
	list.Flows[0].Packets += 1000
	list.Flows[0].Bytes += 1_000_000
	then := time.Unix(1000, 0)
	seen.Flows = seen.Flows[:1]
	out.Reset()
	if err := printFlowChanges(&out, &list, seeFlows(&seen, then), then.Add(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	golden(t, "flows-watch.golden", out.String())
}

// Colours are for terminals whose user did not forbid them.
func TestStatusHasColourOnATerminalOnly(t *testing.T) {
	fake := newFake(t)
	for env, want := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		cmd := exec.Command(built(t), "status", "--socket", fake.socket)
		cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", env)
		term := terminal.Start(t, cmd, 80, 60)
		term.Await("the end of the page", func(text string) bool { return strings.Contains(text, "changed on this host") })
		if got := coloured.MatchString(term.Raw()); got != want {
			t.Errorf("%s: coloured %t", env, got)
		}
	}
	if _, out, _ := rscctl(t, "status", "--socket", fake.socket); strings.Contains(out, "\x1b") {
		t.Errorf("colours in a pipe: %q", out)
	}
}

// Without --limit a table has so many flows and says how to have all; JSON has all.
func TestFlowsAreLimitedUnlessAsked(t *testing.T) {
	fake := newFake(t)
	for args, want := range map[string]string{"": "GET /v1/flows?limit=50&sort=bytes ", "-o json": "GET /v1/flows?sort=bytes ", "--limit 7": "GET /v1/flows?limit=7&sort=bytes "} {
		if code, _, errs := rscctl(t, append([]string{"flows", "--socket", fake.socket}, strings.Fields(args)...)...); code != exitDone {
			t.Fatal(errs)
		}
		if got := fake.last(); got != want {
			t.Errorf("%q asks %q, want %q", args, got, want)
		}
	}
	term := watched(t, 100, 20, "flows", "--socket", fake.socket)
	term.Await("a page", headed.MatchString)
	if got := fake.last(); got != "GET /v1/flows?limit=16&sort=bytes " {
		t.Errorf("with a window of 20 lines it asks %q", got)
	}
}

// What a VM sends through its own tap does not pass us, and is no "0 frames".
func TestATapVMsOwnFramesAreThoseCountedOnItsTap(t *testing.T) {
	st := api.Stats{VMs: []api.VMStats{{VM: "db", TapOutcomes: map[string]uint64{"counted": 1200, "no_flow": 34}}}}
	var out strings.Builder
	if err := printStats(&out, &st); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`from the guest +1,234 frames +counted on its tap`).MatchString(out.String()) || strings.Contains(out.String(), "to the wire") {
		t.Error(out.String())
	}
	now := st
	out.Reset()
	if err := (statsChange{change[api.Stats]{&st, &now, 1}}).print(&out); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`frames from the guest +1,234`).MatchString(out.String()) {
		t.Error(out.String())
	}
}
