package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/report"
)

func statusCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show interfaces, queues, modes, VMs, negotiated features and health",
		ArgsUsage: "[IFACE]",
		UsageText: "rscctl status [IFACE] [options]",
		Flags:     append(watchFlags(), outputFlag(), socketFlag()),
		Action:    func(c *cli.Context) error { return status(c, s) },
	}
}

func status(c *cli.Context, s streams) error {
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	args, err := positionals(c, 0, 1, "[IFACE]")
	if err != nil {
		return err
	}
	cl := client(c)
	var was *api.Status
	var asked time.Time
	return watch(c, s, func(w io.Writer) error {
		st, err := cl.Status(c.Context, strings.Join(args, ""))
		if err != nil {
			return on("status", err)
		}
		if asJSON {
			return printJSON(w, st)
		}
		v := statusView{st: st, now: time.Now(), watched: c.Bool("watch")}
		if was != nil && was.PID == st.PID {
			v.was, v.seconds = was, v.now.Sub(asked).Seconds()
		}
		was, asked = st, v.now
		return v.print(w)
	})
}

// statusView is a status and how it is shown: alone, or watched with what has changed since the last one.
type statusView struct {
	st      *api.Status
	now     time.Time
	watched bool
	was     *api.Status // nil: the first
	seconds float64     // since then
}

func (v statusView) print(w io.Writer) error {
	p, st := newPrinter(w), v.st
	p.fitting = true
	h := st.Health
	if h.State == "" { // an older controller says none
		h = report.Health(st)
	}
	p.row("controller", fmt.Sprintf("%s, pid %d, up %s", st.Version, st.PID, duration(v.now.Sub(st.StartedAt))))
	p.row("state", st.State)
	p.row("flow map", flowMap(st))
	p.row("health", p.paint(healthColour(h.State), string(h.State))+healthCounts(st))
	for _, r := range h.Reasons {
		p.text("  ", r)
	}
	if len(st.Interfaces) == 0 && len(st.Waiting) == 0 {
		p.line("\nno VM is attached: see rscctl attach --help")
	}
	printWaiting(p, st, v.now)
	if len(st.Interfaces) > 0 {
		printInterfaces(p, st)
		printBonds(p, st)
		printForeign(p, st)
		v.printQueues(p)
		printPorts(p, st)
		if !v.watched { // what does not change is not for a window
			printDetails(p, st)
			printChanges(p, st)
		}
	}
	return p.flush()
}

// flowMap says where the flows are counted. Between the last detach and the next attach there is no map.
func flowMap(st *api.Status) string {
	switch {
	case st.FlowsPin != "":
		return st.FlowsPin
	case len(st.Interfaces) == 0:
		return "none while nothing is attached"
	}
	return "not pinned: flow counters end with the controller"
}

// healthCounts says how many VMs are not served.
func healthCounts(st *api.Status) string {
	down, all := 0, 0
	for i := range st.Interfaces {
		for n := range st.Interfaces[i].Ports {
			if all++; st.Interfaces[i].Ports[n].Health.State == api.HealthDown {
				down++
			}
		}
	}
	said := ""
	if n := len(st.Waiting); n > 0 {
		said += ", " + plural(n, "VM waits", "VMs wait")
	}
	if down > 0 {
		said += fmt.Sprintf(", %d of %s down", down, plural(all, "VM", "VMs"))
	}
	return said
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// printWaiting lists the VMs that are known and not attached now.
func printWaiting(p *printer, st *api.Status, now time.Time) {
	if len(st.Waiting) == 0 {
		return
	}
	p.line("")
	p.row("WAITING VM", "INTERFACE", "MAC", "VLAN", "FOR", "NEXT TRY")
	for _, w := range st.Waiting {
		next := "within 1 s"
		if wait := w.NextTry.Sub(now); wait > time.Second {
			next = "in " + duration(wait.Round(time.Second))
		}
		p.row(w.VM, w.Iface, w.MAC, vlanText(w.VLAN), duration(now.Sub(w.Since)), next)
	}
	p.text("", "A waiting VM comes back by itself once the cause is gone; 'rscctl detach INTERFACE --vm VM' gives it up.")
}

func vlanText(id int) string {
	if id == 0 {
		return "-"
	}
	return strconv.Itoa(id)
}

func printInterfaces(p *printer, st *api.Status) {
	p.line("")
	p.row("INTERFACE", "DRIVER", "MTU", "XDP", "AF_XDP", "META", "QUEUES", "VMS", "HEALTH")
	blind := []string{}
	for i := range st.Interfaces {
		nic := &st.Interfaces[i]
		p.row(nic.Name, orDash(nic.Driver), strconv.Itoa(nic.MTU), orDash(string(nic.XDPMode)), string(nic.XSKMode), metadataText(nic.Metadata),
			strconv.Itoa(len(nic.Queues)), strconv.Itoa(len(nic.Ports)), p.health(nic.Health))
		if nic.Metadata != nil && !*nic.Metadata {
			blind = append(blind, nic.Name)
		}
	}
	if len(blind) > 0 {
		p.text("", "META no: frames of "+strings.Join(blind, ", ")+" are parsed twice, the driver hands no metadata on.")
	}
}

// printBonds lists the members of each bond.
func printBonds(p *printer, st *api.Status) {
	head := false
	for i := range st.Interfaces {
		nic := &st.Interfaces[i]
		if nic.Bond == nil {
			continue
		}
		if !head {
			head = true
			p.line("")
			p.row("BOND", "MODE", "MEMBER", "STATE", "DRIVER", "XDP", "QUEUES")
		}
		for _, m := range nic.Bond.Members {
			p.row(nic.Name, nic.Bond.Mode, m.Name, string(m.State), orDash(m.Driver), orDash(string(m.XDPMode)), strconv.Itoa(len(m.Queues)))
		}
	}
}

// printForeign says of each interface whose XDP program is somebody else's what it is, and what is not offered for that.
func printForeign(p *printer, st *api.Status) {
	for i := range st.Interfaces {
		f := st.Interfaces[i].Foreign
		if f == nil {
			continue
		}
		which := ""
		if f.ID != 0 {
			which = fmt.Sprintf(" (%d %q)", f.ID, f.Name)
		}
		p.text("", fmt.Sprintf("%s: program: foreign%s, xsk-map %s, queues %s", st.Interfaces[i].Name, which, f.XSKMap, api.QueuesText(f.Queues)))
		nobody := uint64(0)
		for n := range st.Interfaces[i].Queues {
			nobody += st.Interfaces[i].Queues[n].RxNobody
		}
		if nobody > 0 {
			p.text("  for nobody:  ", plural(int(min(nobody, math.MaxInt)), "frame", "frames")+" dropped")
		}
		p.text("  not offered: ", strings.Join(f.NotOffered, "; "))
	}
}

// queueName names a queue, and of a bond's also the one of the member.
func queueName(iface string, q *api.Queue) string {
	name := iface + "/" + strconv.Itoa(q.ID)
	if q.Device != "" {
		name += fmt.Sprintf(" (%s/%d)", q.Device, q.DeviceQueue)
	}
	return name
}

// metadataText is "-" before the first frame: nobody knows yet whether the driver hands the descriptor on.
func metadataText(yes *bool) string {
	switch {
	case yes == nil:
		return "-"
	case *yes:
		return "yes"
	}
	return "no"
}

// health is a cell.
func (p *printer) health(h api.Health) string {
	if h.State == "" {
		return "-"
	}
	return p.paint(healthColour(h.State), string(h.State))
}

// printQueues lists the queues: what they did so far, or while they are watched what they do a second.
func (v statusView) printQueues(p *printer) {
	p.line("")
	if v.watched {
		p.row("QUEUE", "RX FRAMES", "RX/S", "TX/S", "LOST/S", "HELD", "CPU", "HEALTH")
	} else {
		p.row("QUEUE", "RX FRAMES", "TX FRAMES", "LOST", "HELD", "CPU TIME", "HEALTH")
	}
	for i := range v.st.Interfaces {
		nic := &v.st.Interfaces[i]
		for n := range nic.Queues {
			q := &nic.Queues[n]
			name, held := queueName(nic.Name, q), fmt.Sprintf("%d/%d", q.Held, q.Chunks)
			if v.watched {
				d := v.since(nic.Name, q)
				p.row(name, many(q.RxFrames), d.rate(func(q *api.Queue) uint64 { return q.RxFrames }), d.rate(func(q *api.Queue) uint64 { return q.TxFrames }), d.rate((*api.Queue).Lost), held, d.cpu(), p.health(q.Health))
			} else {
				p.row(name, many(q.RxFrames), many(q.TxFrames), many(q.Lost()), held, duration(time.Duration(q.CPUNS)), p.health(q.Health))
			}
		}
	}
}

func printPorts(p *printer, st *api.Status) {
	p.line("")
	p.row("VM", "INTERFACE", "STATE", "COALESCE", "HOLD", "FEED", "HEALTH")
	for i := range st.Interfaces {
		for _, port := range st.Interfaces[i].Ports {
			p.row(port.VM, st.Interfaces[i].Name, string(port.State), string(port.Effective), portHold(&port), string(port.Feed), p.health(port.Health))
		}
	}
}

// portHold is the hold that a VM's superframes get: an adaptive one is in its details too.
func portHold(p *api.Port) string {
	if !p.Policy.HoldAdaptive {
		return duration(time.Duration(p.Policy.HoldNS))
	}
	if p.HoldNowNS == 0 {
		return "adaptive"
	}
	return "~" + duration(time.Duration(p.HoldNowNS).Round(100*time.Nanosecond))
}

// printDetails says of each VM what has no room in a table.
func printDetails(p *printer, st *api.Status) {
	for i := range st.Interfaces {
		for _, port := range st.Interfaces[i].Ports {
			p.line("\n%s", port.VM)
			address := port.MAC
			if port.VLAN != 0 {
				address += ", VLAN " + vlanText(port.VLAN)
			}
			p.text("  address   ", address)
			p.text("  way       ", fmt.Sprintf("%s%s (%s)%s", port.Socket, port.Tap, port.Mode, ringsText(port)))
			if port.Tx != "" {
				p.text("  sends by  ", string(port.Tx))
			}
			features := strings.Join(port.Features, " ")
			if features == "" {
				features = "none yet"
			}
			p.text("  features  ", features)
			p.text("  hold      ", holdNow(port.Policy, port.HoldNowNS))
			for _, note := range append(portNotes(port), tenantNotes(&port)...) {
				p.text("  note      ", note)
			}
		}
	}
}

// ringsText says how many queues a guest has, and how long, where that is known.
func ringsText(port api.Port) string {
	text := ""
	if port.QueuePairs > 0 {
		text = ", " + plural(port.QueuePairs, "queue pair", "queue pairs")
	}
	if port.QueueSize > 0 {
		text += fmt.Sprintf(" of %d descriptors", port.QueueSize)
	}
	return text
}

func portNotes(port api.Port) []string {
	var notes []string
	told := func(w string) bool { return strings.Contains(w, port.StopReason) } // as a failure does
	if port.StopReason != "" && !slices.ContainsFunc(port.Health.Reasons, told) {
		notes = append(notes, string(port.State)+": "+port.StopReason)
	}
	if port.Policy.Profile != port.Effective && port.Policy.Coalesce {
		notes = append(notes, fmt.Sprintf("profile: %s instead of %s", port.Effective, port.Policy.Profile))
	}
	if port.PolicyNote != "" {
		notes = append(notes, "profile: "+port.PolicyNote)
	}
	if port.Proof != "" {
		notes = append(notes, "its tap: "+port.Proof)
	}
	if port.FeedNote != "" {
		notes = append(notes, "feed: "+port.FeedNote)
	}
	for _, rule := range port.Bypassed {
		notes = append(notes, "bypassed: "+rule)
	}
	if port.MTU > 0 {
		notes = append(notes, "its MTU: "+strconv.Itoa(port.MTU))
	}
	if port.AllowSpoof {
		notes = append(notes, "may send with foreign source MACs")
	}
	return notes
}

func printChanges(p *printer, st *api.Status) {
	first := true
	for i := range st.Interfaces {
		for _, change := range st.Interfaces[i].Changes {
			if first {
				p.line("\nchanged on this host, undone by detach:")
				first = false
			}
			p.text("  ", st.Interfaces[i].Name+": "+change)
		}
	}
}
