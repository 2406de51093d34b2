package why

import (
	"fmt"
	"strings"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// What is worth a sentence.
const (
	enough   = 22   // segments a frame from which on more bring next to nothing: 91 % of the gain
	fair     = 10   // that bring 85 % of it
	leastPct = 5.0  // a reason of less says nothing of how things are
	most     = 3    // reasons a topic
	few      = 1000 // packets below which shares say little
)

// Explain says what there is to say of a VM, the most important of each topic first.
func Explain(vm VM) Answer {
	x := explainer{vm: vm, out: Answer{Schema: api.Schema, Sentences: []Sentence{}}}
	if w := vm.Waiting; w != nil {
		x.out.VM, x.out.Iface = w.VM, w.Iface
		x.say(State, "", "The VM is not served: it waits for what it needs, and comes back by itself: %s.", w.Cause)
		return x.out
	}
	x.out.VM, x.out.Iface = vm.Stats.VM, vm.Stats.Iface
	x.state()
	if vm.Stats.RxPackets == 0 {
		x.silent()
	} else {
		x.merged()
		x.ends()
		x.alone()
		x.held()
	}
	x.lost()
	return x.out
}

type explainer struct {
	vm  VM
	out Answer
}

func (x *explainer) say(t Topic, do, format string, args ...any) *Sentence {
	if strings.Contains(do, "%s") {
		do = fmt.Sprintf(do, api.ShellWord(x.out.VM))
	}
	x.out.Sentences = append(x.out.Sentences, Sentence{Topic: t, Text: fmt.Sprintf(format, args...), Do: do})
	return &x.out.Sentences[len(x.out.Sentences)-1]
}

// because says something that was counted for a reason, and the reason.
func (x *explainer) because(t Topic, r api.Count, format string, args ...any) {
	w, ok := word{}, false
	if p := x.vm.Port; p != nil && p.Policy.HoldAdaptive {
		w, ok = adaptiveWords[r.Name]
	}
	if !ok {
		w = word{meaning(r.Name), words[r.Name].do}
	}
	s := x.say(t, w.do, format+" because %s.", append(args, w.means)...)
	s.Reason, s.Packets = r.Name, r.N
}

// state says what keeps the VM from being served, or from being served as was asked for.
func (x *explainer) state() {
	p := x.vm.Port
	if p == nil {
		return
	}
	reason := ""
	if p.StopReason != "" {
		reason = " (" + p.StopReason + ")"
	}
	switch {
	case p.State == api.PortRunning:
	case p.State == api.PortConnected:
		x.say(State, "look at the guest's network driver", "The VM is not served: its guest's rings do not run%s.", reason)
	case p.State != api.PortWaiting:
		x.say(State, "", "The VM is not served: its port is %s%s.", p.State, reason)
	case p.Tap != "":
		x.say(State, "start the VM", "The VM is not served: nobody has tap %s open.", p.Tap)
	case p.Mode == api.ModeConnect:
		x.say(State, "start the VM", "The VM is not served: nobody serves %s%s.", p.Socket, reason)
	default:
		x.say(State, "start the VM with its vhost-user socket at "+p.Socket, "The VM is not served: no front-end is connected to it%s.", reason)
	}
	if p.State == api.PortRunning && p.StopReason != "" {
		x.say(State, "", "The kernel's path brings the VM its frames, not rscctl: %s.", p.StopReason)
	}
	if p.PolicyNote != "" && p.State == api.PortRunning {
		x.say(State, "", "The rules in force are %s: %s.", p.Effective, p.PolicyNote)
	}
	for _, w := range p.Warnings {
		x.say(State, "", "%s.", strings.TrimSuffix(w, "."))
	}
}

func (x *explainer) silent() {
	do := "see what comes in at all: 'rscctl stats' shows the interface's outcomes; the VM's MAC and VLAN are those of attach"
	switch p := x.vm.Port; {
	case p == nil:
	case p.State != api.PortRunning || p.StopReason != "":
		do = "" // why is said above
	case !p.Policy.Coalesce && p.Mode == api.ModeKernel:
		do = "rscctl policy set %s --coalesce on"
	}
	x.say(Merged, do, "No packet has come to rscctl for this VM.")
}

// merged says what share is merged, and what that is worth.
func (x *explainer) merged() {
	s := x.vm.Stats
	out := x.say(Merged, "", "%d of %d packets are merged (%s)", s.MergedPackets, s.RxPackets, percent(s.MergedPackets, s.RxPackets))
	if s.Superframes == 0 {
		out.Text += ": nothing is gained so far."
	} else {
		mean := float64(s.MergedPackets) / float64(s.Superframes)
		out.Text += fmt.Sprintf(", %.1f segments a superframe: %s.", mean, worth(mean))
	}
	if s.RxPackets < few {
		out.Text += " That is few packets: the shares say little yet."
	}
	out.Packets = s.MergedPackets
	if s.Recut > 0 {
		x.say(Merged, "let the guest post larger or more buffers: mrg_rxbuf, a longer ring", "%d superframes were cut again because the guest's buffers did not hold them.", s.Recut).Packets = s.Recut
	}
}

// worth of so many segments a superframe.
func worth(mean float64) string {
	switch {
	case mean >= enough:
		return "longer ones would bring the guest next to nothing"
	case mean >= fair:
		return "the guest has most of the gain that there is"
	}
	return "longer ones would bring more"
}

// ends says why superframes are not longer. Those that are long enough need no reason.
func (x *explainer) ends() {
	s := x.vm.Stats
	if s.Superframes == 0 || float64(s.MergedPackets) >= enough*float64(s.Superframes) {
		return
	}
	for _, r := range top(s.Sealed, s.Superframes) {
		x.because(Ends, r, "%s of the superframes ended", percent(r.N, s.Superframes))
	}
}

func (x *explainer) alone() {
	s := x.vm.Stats
	for _, r := range top(s.Passed, s.RxPackets) {
		x.because(Alone, r, "%s of the packets passed alone", percent(r.N, s.RxPackets))
	}
}

// held says how long the first segments waited, from the histogram: so it says "at most".
func (x *explainer) held() {
	half, ok := quantile(x.vm.Stats.HoldNS, 50)
	if !ok {
		return
	}
	last, _ := quantile(x.vm.Stats.HoldNS, 99)
	x.say(Held, "", "Half of the frames that waited for their next segment waited %s, 99 %% of them %s.", half, last)
	if p := x.vm.Port; p != nil && p.Policy.HoldAdaptive && p.HoldNowNS > 0 {
		x.say(Held, "", "How long they may wait is found out for each flow, up to %v: now it is %v on average.", time.Duration(p.Policy.HoldNS),
			time.Duration(p.HoldNowNS).Round(100*time.Nanosecond))
	}
}

// lost says what was dropped, and by whom.
func (x *explainer) lost() {
	s := x.vm.Stats
	for _, d := range []struct {
		by   map[string]uint64
		what string
	}{{s.Dropped, "packets for the VM"}, {s.TxDropped, "frames of the VM"}} {
		for _, r := range api.ByCount(d.by) {
			x.because(Lost, r, "%d %s were dropped", r.N, d.what)
		}
	}
	if s.TxPaced > 0 {
		x.say(Held, "nothing, if the rate is meant; otherwise rscctl policy set %s --rate-tx RATE", "What the VM sends had to wait %s for its --rate-tx. It waits in the guest: nothing of it is lost.", times(s.TxPaced))
	}
	if s.Refusals > 0 {
		x.say(Lost, takesNone,
			"The guest was found %s to drop superframes: their bytes came again, and reached it only one by one. It got single packets for a while each time.", times(s.Refusals))
	}
	if s.Rests > 0 {
		x.say(Lost, "look for what frees the VM's memory under it: a balloon, swap on the host",
			"The VM rested %s, and got and sent nothing meanwhile, because its memory made workers sleep for %v in all.", times(s.Rests), time.Duration(s.StalledNS).Round(time.Millisecond))
	}
	if n := s.Vhost["spared"]; n > 0 {
		x.say(Lost, "", "An interrupt or a kick of the VM took too much CPU time and went a slower way, %s: its front-end is slow or watches them many times.", times(n)).Packets = n
	}
	for _, l := range []struct {
		n    uint64
		text string
		do   string
	}{
		{s.TapDropped, "%d frames found the tap's queue full: the VM does not keep up.", "more vCPU or queues for the VM, or a longer txqueuelen of the tap"},
		{s.FeedUnsent, "%d frames were posted to vhost-net and not sent when the feed was closed.", ""},
		{s.Vhost["calls_lost"], "%d interrupts could not be given to the guest.", ""},
		{uint64(max(s.Unexplained, 0)), "%d packets came in and are nowhere.", ours},
		{uint64(max(-s.Unexplained, 0)), "%d packets are counted that never came in.", ours},
	} {
		if l.n > 0 {
			x.say(Lost, l.do, l.text, l.n).Packets = l.n
		}
	}
	if n := s.RxShare; n > 0 {
		x.say(Lost, "more vCPU for a VM that is slower than its senders; more queues ('ethtool -L') or a faster core where the workers are",
			"%d frames were dropped in front of the queues, where the VM had its share of the room: they came faster than they were taken.", n).Packets = n
	}
	x.queues()
}

// queues says what the VM's interface lost before it was anybody's.
func (x *explainer) queues() {
	var full, empty, long, none, broken, hangs, around uint64
	for _, q := range x.vm.Queues {
		full, empty, long = full+q.RxRingFull, empty+q.RxFillEmpty, long+q.RxTooLong
		none, broken = none+q.RxNoBuffer, broken+q.RxBroken
		hangs, around = hangs+q.Hangs, around+q.HangPassed
	}
	if hangs > 0 {
		x.say(Lost, "look what takes the workers their processors: 'top -H', a VM's vCPU pinned to the same core, a debugger on the controller",
			"A worker of the interface took nothing for 5 ms and more while frames waited, %s: %d frames of VMs on taps went unmerged by the kernel's path.", times(hangs), around).Packets = around
	}
	if n := full + empty; n > 0 {
		x.say(Lost, "give the interface more queues ('ethtool -L') or the host a faster core", "%d frames of the interface, of whatever VM, came faster than its workers took them.", n).Packets = n
	}
	if long > 0 {
		x.say(Lost, "switch off what merges before us: 'ethtool -K IFACE lro off', a veth peer's TSO; 'rscctl doctor IFACE' names it", "%d frames of the interface were longer than a packet buffer.", long).Packets = long
	}
	if none > 0 {
		x.say(Lost, "give the queues more memory: 'rscctl run --chunks N'", "%d jumbo frames of the interface, of whatever VM, found no free buffer.", none).Packets = none
	}
	if broken > 0 {
		x.say(Lost, "make the sender's MTU fit the interface's; if it does, the driver loses pieces: a kernel with a newer one may not", "%d jumbo frames of the interface were too long, or not whole.", broken).Packets = broken
	}
}

// top are the reasons worth a sentence.
func top(by map[string]uint64, of uint64) (out []api.Count) {
	for _, r := range api.ByCount(by) {
		if len(out) < most && 100*float64(r.N) >= leastPct*float64(of) {
			out = append(out, r)
		}
	}
	return out
}

// meaning of a reason; one that a newer controller counts is named.
func meaning(name string) string {
	if w, ok := words[name]; ok {
		return w.means
	}
	return "of " + name
}

// quantile tells the bound below which pct of a histogram's values are.
func quantile(h []api.Bucket, pct uint64) (text string, ok bool) {
	total := uint64(0)
	for _, b := range h {
		total += b.Count
	}
	if total == 0 {
		return "", false
	}
	sum := uint64(0)
	for i, b := range h {
		if sum += b.Count; sum*100 < pct*total {
			continue
		}
		if b.Le == 0 && i > 0 {
			return "longer than " + time.Duration(h[i-1].Le).String(), true
		}
		return "at most " + time.Duration(b.Le).String(), true
	}
	return "", false
}

// times is how often something happened.
func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func percent(n, of uint64) string {
	if of == 0 {
		return "-"
	}
	p := 100 * float64(n) / float64(of)
	switch {
	case p > 0 && p < 1:
		return "under 1 %"
	case p < 100 && p > 99:
		return "over 99 %"
	}
	return fmt.Sprintf("%.0f %%", p)
}
