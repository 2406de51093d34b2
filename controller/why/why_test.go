package why

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/flowtable"
)

func stats() *api.VMStats {
	return &api.VMStats{VM: "db1", Iface: "eth1", Passed: map[string]uint64{}, Sealed: map[string]uint64{}, Dropped: map[string]uint64{}, TxDropped: map[string]uint64{}}
}

// about returns the sentences of a topic, each with what to do.
func about(a Answer, t Topic) (out []string) {
	for _, s := range a.Sentences {
		if s.Topic == t {
			out = append(out, s.Text+" -> "+s.Do)
		}
	}
	return out
}

func TestEveryReasonHasWords(t *testing.T) {
	for r := range flowtable.Reason(flowtable.NumReasons) {
		if words[r.String()].means == "" {
			t.Errorf("%s means nothing", r)
		}
	}
	for name, w := range words {
		if strings.Count(w.do, "%s") > 1 || strings.Contains(w.means, "%") || strings.HasSuffix(w.means, ".") {
			t.Errorf("%s: %+v", name, w)
		}
	}
	if got := meaning("brand_new"); got != "of brand_new" {
		t.Errorf("a reason of a newer controller: %q", got)
	}
}

// An operator reads what is merged, what it is worth, and the first reasons why it is not more, those that matter and no others.
func TestWhatIsMergedAndWhyNotMore(t *testing.T) {
	s := stats()
	s.RxPackets, s.Superframes, s.MergedPackets = 100_000, 8_000, 40_000
	s.Sealed = map[string]uint64{"psh": 6_000, "deadline": 1_500, "gap": 499, "fin": 1}
	s.Passed = map[string]uint64{"not_tcp": 50_000, "pure_ack": 7_000, "psh": 2_999, "syn": 1}
	a := Explain(VM{Stats: s, Port: &api.Port{State: api.PortRunning}})
	if a.VM != "db1" || a.Iface != "eth1" || a.Schema != api.Schema {
		t.Errorf("%+v", a)
	}
	for topic, want := range map[Topic][]string{
		State:  nil,
		Merged: {"40000 of 100000 packets are merged (40 %), 5.0 segments a superframe: longer ones would bring more. -> "},
		Ends: {
			"75 % of the superframes ended because the sender set PSH: the application's write ended there. -> nothing: small writes have nothing to gain",
			"19 % of the superframes ended because the next segment did not come within --hold. -> a longer hold merges more and delays more: rscctl policy set db1 --hold adaptive finds out how long",
			"6 % of the superframes ended because a segment was missing before the next: loss or reordering on the way here. -> " + words["gap"].do,
		},
		Alone: {
			"50 % of the packets passed alone because they are no TCP (UDP, QUIC, ICMP). -> ",
			"7 % of the packets passed alone because they are acknowledgements without data: the VM is the sender here. -> ",
		},
		Lost: nil,
	} {
		if got := about(a, topic); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", topic, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// The worth follows the curve of docs/performance.md: 10 segments have most of the gain, 22 nearly all, and then nobody asks for more.
func TestLongSuperframesNeedNoReason(t *testing.T) {
	for _, c := range []struct {
		merged uint64
		word   string
		ends   int
	}{{9_000, "would bring more", 1}, {10_000, "most of the gain", 1}, {22_000, "next to nothing", 0}} {
		s := stats()
		s.RxPackets, s.Superframes, s.MergedPackets, s.Sealed = 30_000, 1_000, c.merged, map[string]uint64{"psh": 1_000}
		a := Explain(VM{Stats: s})
		if got := about(a, Merged); len(got) != 1 || !strings.Contains(got[0], c.word) {
			t.Errorf("%d merged: %q", c.merged, got)
		}
		if got := about(a, Ends); len(got) != c.ends {
			t.Errorf("%d merged: %q", c.merged, got)
		}
	}
	s := stats()
	s.RxPackets, s.Passed = 20, map[string]uint64{"policy_off": 20}
	got := about(Explain(VM{Stats: s}), Merged)
	if len(got) != 1 || !strings.Contains(got[0], "nothing is gained so far") || !strings.Contains(got[0], "few packets") {
		t.Errorf("%q", got)
	}
}

// A VM that is not served, or not as was asked for, is told of first, with the cause.
func TestAVMThatIsNotServedSaysSoFirst(t *testing.T) {
	for name, c := range map[string]struct {
		vm   VM
		want string
	}{
		"waits":         {VM{Waiting: &api.Waiting{VM: "db1", Iface: "eth1", Cause: "tap vnet9: no such device"}}, "it waits for what it needs, and comes back by itself: tap vnet9: no such device. -> "},
		"no front-end":  {VM{Stats: stats(), Port: &api.Port{State: api.PortWaiting, Socket: "/run/db1.sock"}}, "no front-end is connected to it. -> start the VM with its vhost-user socket at /run/db1.sock"},
		"thrown out":    {VM{Stats: stats(), Port: &api.Port{State: api.PortWaiting, Socket: "/run/db1.sock", StopReason: "peer closed", PolicyNote: "no driver"}}, "no front-end is connected to it (peer closed). -> start the VM with its vhost-user socket at /run/db1.sock"},
		"no server":     {VM{Stats: stats(), Port: &api.Port{State: api.PortWaiting, Socket: "/run/db1.sock", Mode: api.ModeConnect}}, "nobody serves /run/db1.sock. -> start the VM"},
		"no driver":     {VM{Stats: stats(), Port: &api.Port{State: api.PortConnected, Socket: "/run/db1.sock"}}, "its guest's rings do not run. -> look at the guest's network driver"},
		"no reader":     {VM{Stats: stats(), Port: &api.Port{State: api.PortWaiting, Tap: "vnet3", StopReason: "no VM has the tap open"}}, "nobody has tap vnet3 open. -> start the VM"},
		"failed":        {VM{Stats: stats(), Port: &api.Port{State: api.PortFailed, StopReason: "bad descriptor"}}, "its port is failed (bad descriptor). -> "},
		"halted":        {VM{Stats: stats(), Port: &api.Port{State: api.PortRunning, StopReason: "rules are there"}}, "The kernel's path brings the VM its frames, not rscctl: rules are there. -> "},
		"other profile": {VM{Stats: stats(), Port: &api.Port{State: api.PortRunning, Effective: api.ProfileGRO, PolicyNote: "no RSC_EXT"}}, "The rules in force are gro: no RSC_EXT. -> "},
		"a warning":     {VM{Stats: stats(), Port: &api.Port{State: api.PortRunning, Warnings: []string{"its senders are odd"}}}, "its senders are odd. -> "},
	} {
		a := Explain(c.vm)
		if got := about(a, State); len(got) != 1 || !strings.HasSuffix(got[0], c.want) || a.Sentences[0].Topic != State {
			t.Errorf("%s: %q", name, got)
		}
		if a.VM != "db1" || a.Iface != "eth1" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	// What would change nothing is not advised: the policy merges already, and what is missing is said above.
	for _, p := range []api.Port{
		{State: api.PortWaiting, Tap: "vnet3", Mode: api.ModeKernel, Policy: api.BuiltinPolicy()}, {State: api.PortWaiting, Socket: "/s"},
		{State: api.PortRunning, Mode: api.ModeKernel, Policy: api.BuiltinPolicy(), StopReason: "rules are there"},
	} {
		if got := about(Explain(VM{Stats: stats(), Port: &p}), Merged); len(got) != 1 || got[0] != "No packet has come to rscctl for this VM. -> " {
			t.Errorf("%+v: %q", p, got)
		}
	}
	got := about(Explain(VM{Stats: stats(), Port: &api.Port{State: api.PortRunning, Mode: api.ModeKernel}}), Merged)
	if len(got) != 1 || !strings.Contains(got[0], "No packet has come") || !strings.Contains(got[0], "policy set db1 --coalesce on") {
		t.Errorf("%q", got)
	}
}

func TestHoldIsToldFromTheHistogram(t *testing.T) {
	s := stats()
	s.RxPackets = 5000
	s.HoldNS = []api.Bucket{{Le: 1000, Count: 60}, {Le: 50_000, Count: 39}, {Le: 100_000}, {Count: 1}}
	got := about(Explain(VM{Stats: s}), Held)
	if len(got) != 1 || got[0] != "Half of the frames that waited for their next segment waited at most 1µs, 99 % of them at most 50µs. -> " {
		t.Errorf("%q", got)
	}
	port := &api.Port{State: api.PortRunning, Policy: api.Policy{HoldNS: 10e6, HoldAdaptive: true}, HoldNowNS: 70_030}
	got = about(Explain(VM{Stats: s, Port: port}), Held)
	if len(got) != 2 || got[1] != "How long they may wait is found out for each flow, up to 10ms: now it is 70µs on average. -> " {
		t.Errorf("%q", got)
	}
	s.HoldNS[3].Count = 100
	if got = about(Explain(VM{Stats: s}), Held); !strings.Contains(got[0], "99 % of them longer than 100µs") {
		t.Errorf("%q", got)
	}
	s.HoldNS = []api.Bucket{{Le: 1000}, {}}
	if got = about(Explain(VM{Stats: s}), Held); got != nil {
		t.Errorf("nothing waited: %q", got)
	}
}

// That time ended a superframe is no reason to turn a knob where the hold adapts.
func TestAnAdaptiveHoldNeedsNoAdvice(t *testing.T) {
	s := stats()
	s.RxPackets, s.Superframes, s.MergedPackets = 100_000, 10_000, 60_000
	s.Sealed = map[string]uint64{"deadline": 9_000, "burst_end": 1_000}
	port := &api.Port{State: api.PortRunning, Policy: api.Policy{Coalesce: true, HoldNS: 10e6, HoldAdaptive: true}}
	got := about(Explain(VM{Stats: s, Port: port}), Ends)
	for i, name := range []string{"deadline", "burst_end"} {
		w := adaptiveWords[name]
		if len(got) != 2 || !strings.HasSuffix(got[i], " because "+w.means+". -> "+w.do) {
			t.Errorf("%q", got)
		}
	}
}

// Every kind of loss has a sentence that says whose fault it is; a packet that is nowhere is ours.
func TestEveryLossIsToldWithWhoseFaultItIs(t *testing.T) {
	s := stats()
	s.RxPackets = 10
	s.Dropped, s.TxDropped = map[string]uint64{"guest_no_buffers": 7, "port_down": 9}, map[string]uint64{"source_mac": 3}
	s.StalledNS, s.Rests = 1.5e9, 13
	s.TapDropped, s.FeedUnsent, s.Unexplained, s.Vhost = 4, 5, 6, map[string]uint64{"calls_lost": 8, "spared": 2}
	a := Explain(VM{Stats: s, Queues: []api.Queue{{RxRingFull: 11, RxTooLong: 1, Hangs: 1, HangPassed: 40}, {RxFillEmpty: 12, RxNoBuffer: 13, RxBroken: 14, Hangs: 2, HangPassed: 1}}})
	all := strings.Join(about(a, Lost), "\n")
	for _, want := range []string{
		"9 packets for the VM were dropped because the VM's port was not running", "7 packets for the VM were dropped because the guest gave no buffers, or rested", "13 jumbo frames of the interface, of whatever VM, found no free buffer", "14 jumbo frames of the interface were too long",
		"rested 13 times", "made workers sleep for 1.5s in all", "3 frames of the VM were dropped because the VM sent from an address that is not its own", "--allow-spoof", "4 frames found the tap's queue full",
		"5 frames were posted", "8 interrupts", "a slower way, 2 times: ", "6 packets came in and are nowhere. -> a fault of ours: please report it",
		"23 frames of the interface", "1 frames of the interface were longer",
		"while frames waited, 3 times: 41 frames of VMs on taps went unmerged",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	s.Unexplained = -6
	if all = strings.Join(about(Explain(VM{Stats: s}), Lost), "\n"); !strings.Contains(all, "6 packets are counted that never came in. -> a fault of ours") || strings.Contains(all, "nowhere") {
		t.Error(all)
	}
}

// What happened one time happened once.
func TestOneTimeIsOnce(t *testing.T) {
	s := stats()
	s.Refusals, s.Rests, s.Vhost = 1, 1, map[string]uint64{"spared": 1}
	all := strings.Join(about(Explain(VM{Stats: s, Queues: []api.Queue{{Hangs: 1, HangPassed: 40}}}), Lost), "\n")
	for _, want := range []string{"was found once to drop", "rested once, and", "a slower way, once: ", "while frames waited, once: 40 frames"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "1 times") {
		t.Error(all)
	}
}

// Machines read the same sentences: one line each, in JSON.
func TestSentencesAreLines(t *testing.T) {
	s := stats()
	s.RxPackets, s.Superframes, s.MergedPackets = 64_000, 64_000, 64_000
	for name := range words {
		s.Passed[name], s.Sealed[name], s.Dropped[name], s.TxDropped[name] = 1000, 1000, 1000, 1000
	}
	line := regexp.MustCompile(`^[A-Z0-9].*\.$`)
	for _, e := range Explain(VM{Stats: s}).Sentences {
		if !line.MatchString(e.Text) || strings.Contains(e.Do, "%!") || strings.Contains(e.Text, "%!") || strings.ContainsRune(e.Text+e.Do, '\n') {
			t.Errorf("%+v", e)
		}
		if _, err := json.Marshal(e); err != nil {
			t.Error(err)
		}
	}
}
