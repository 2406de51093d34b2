package demo

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/rscctl/rscctl/controller/api"
)

// Result is what the demo found. Its JSON form is part of the command line's contract.
type Result struct {
	Schema     int    `json:"schema"`
	Kernel     string `json:"kernel"`
	XDPMode    string `json:"xdp_mode"`           // "native" or "generic"
	XSKMode    string `json:"xsk_mode"`           // "copy" or "zerocopy"
	Congestion string `json:"congestion_control"` // of the senders

	Off         Mode `json:"off"`           // coalescing off
	OffGuestGRO Mode `json:"off_guest_gro"` // coalescing off, the guest's stack merges for itself
	On          Mode `json:"on"`            // coalescing on
	OnGuestGRO  Mode `json:"on_guest_gro"`  // coalescing on, the guest's stack merges for itself, too

	Quota   *Quota `json:"quota"`              // nil: the guest cannot be held to a quota here
	NoQuota string `json:"no_quota,omitempty"` // why

	Speedup          float64 `json:"speedup"`                  // on.gbps / off.gbps
	GuestCPU         float64 `json:"guest_cpu"`                // the guest's CPU time per byte, off / on
	GuestCPUGuestGRO float64 `json:"guest_cpu_with_guest_gro"` // the same, off_guest_gro / on_guest_gro

	DataMatch bool `json:"data_match"` // every stream, in both directions, arrived as it was sent
}

// Quota is how it went with the guest held to a part of a processor, so that the guest is what is too slow. With the machine's processors
// for the taking the sender may be.
type Quota struct {
	Processors float64 `json:"processors"`
	Off        Mode    `json:"off"`
	On         Mode    `json:"on"`
	Speedup    float64 `json:"speedup"` // on.gbps / off.gbps
}

// Mode is how one setting did: the round whose rate is the median of its rounds, as a whole, so that its figures fit
// each other. Rates are application bytes the guest received; 1 GB is 10^9 bytes.
type Mode struct {
	Gbps        float64           `json:"gbps"`
	WireFrames  uint64            `json:"wire_frames"`            // from AF_XDP, sender to guest
	GuestFrames uint64            `json:"guest_frames"`           // rx_packets of the guest's tap
	MeanBytes   float64           `json:"mean_guest_frame_bytes"` // rx_bytes / rx_packets of it
	Segments    float64           `json:"segments_per_frame"`     // TCP data segments per frame with TCP data
	Retransmits uint64            `json:"retransmits"`            // of the sender
	Congestion  string            `json:"-"`                      // control, of the sender
	Drops       uint64            `json:"drops"`                  // frames that the controller, or AF_XDP or XDP in front of it, dropped
	Wakeups     uint64            `json:"controller_wakeups"`     // of its threads, while the round lasted
	CPU         CPU               `json:"cpu_seconds_per_gb"`
	Reasons     map[string]uint64 `json:"reasons"` // frames delivered, by the reason they left the flow table

	StackPackets uint64    `json:"-"` // IP packets the guest's stack handled: fewer than guest frames if its GRO merged
	AllGbps      []float64 `json:"-"` // the rates of all rounds, in order
}

// CPU is processor time per 10^9 application bytes. Total is the whole machine's, whoever used it. Kernel is that of the kernel's own
// threads, ksoftirqd above all; what an interrupt does in its own time is charged to the process that it came upon, so a part of the wire's work
// is the sender's (XDP), and the guest's stack is the guest's.
type CPU struct {
	Sender     float64 `json:"sender"`
	Kernel     float64 `json:"kernel"`
	Controller float64 `json:"controller"`
	Guest      float64 `json:"guest"`
	Total      float64 `json:"total"`
}

// failure is printed instead of a Result.
type failure struct {
	Schema int    `json:"schema"`
	Error  string `json:"error"`
}

func writeFailure(w io.Writer, err error) error {
	return json.NewEncoder(w).Encode(failure{Schema: api.Schema, Error: err.Error()})
}

// median takes the middle round by rate; of an even number the slower one of the two in the middle.
func median(rounds []Mode) Mode {
	if len(rounds) == 0 {
		return Mode{}
	}
	sorted := slices.Clone(rounds)
	slices.SortStableFunc(sorted, func(a, b Mode) int { return cmp.Compare(a.Gbps, b.Gbps) })
	m := sorted[(len(sorted)-1)/2]
	for _, r := range rounds {
		m.AllGbps = append(m.AllGbps, r.Gbps)
	}
	return m
}

// text writes the result for people.
func (r *Result) text(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\toff\toff + guest GRO\ton\ton + guest GRO\t")
	row := func(name, format string, get func(m *Mode) any) {
		fmt.Fprintf(tw, "%s\t"+strings.Repeat(format+"\t", 4)+"\n", name, get(&r.Off), get(&r.OffGuestGRO), get(&r.On), get(&r.OnGuestGRO))
	}
	row("rate, Gb/s", "%.2f", func(m *Mode) any { return m.Gbps })
	row("wire frames", "%d", func(m *Mode) any { return m.WireFrames })
	row("guest frames", "%d", func(m *Mode) any { return m.GuestFrames })
	row("packets in the guest's stack", "%d", func(m *Mode) any { return m.StackPackets })
	row("mean guest frame, bytes", "%.0f", func(m *Mode) any { return m.MeanBytes })
	row("segments per data frame", "%.1f", func(m *Mode) any { return m.Segments })
	row("retransmits", "%d", func(m *Mode) any { return m.Retransmits })
	row("controller, CPU s/GB", "%.3f", func(m *Mode) any { return m.CPU.Controller })
	row("guest, CPU s/GB", "%.3f", func(m *Mode) any { return m.CPU.Guest })
	row("machine, CPU s/GB", "%.3f", func(m *Mode) any { return m.CPU.Total })
	if err := tw.Flush(); err != nil {
		return err
	}
	match := "every stream arrived as it was sent"
	if !r.DataMatch {
		match = "STREAMS DIFFER"
	}
	if _, err := io.WriteString(w, columnsText); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\non / off: %.2f times the rate, %.2f times less guest CPU per byte, %.2f times less with the guest's own GRO on\n%s\nframes with coalescing on, by reason: %s\ndata: %s; no virtio header broke a rule\nkernel %s, XDP %s, AF_XDP %s, TCP %s; medians of %d rounds\n",
		r.Speedup, r.GuestCPU, r.GuestCPUGuestGRO, r.quotaText(), reasonText(r.On.Reasons), match, r.Kernel, r.XDPMode, r.XSKMode, r.Congestion, len(r.On.AllGbps))
	return err
}

// columnsText says what the columns compare. Who runs a guest as it comes has the one in the middle.
const columnsText = `
off              coalescing off, and the guest's own GRO off: its stack handles every segment
off + guest GRO  coalescing off, and the guest's own GRO on, as guests come: the guest still takes every frame
                 out of its queue, and then merges them for its stack, with its own processor time
on               coalescing on, the guest's own GRO off: it gets superframes
on + guest GRO   coalescing on in a guest as it comes
`

// quotaText is what the rounds with a slow guest found: the rate above is the sender's or the machine's, whichever gives out first.
func (r *Result) quotaText() string {
	q := r.Quota
	if q == nil {
		return "guest held to a part of a processor: not measured, " + r.NoQuota
	}
	return fmt.Sprintf("guest held to %.0f %% of a processor: off %.2f Gb/s, on %.2f Gb/s: %.2f times", q.Processors*100, q.Off.Gbps, q.On.Gbps, q.Speedup)
}

// reasonText lists reasons, the most frequent first.
func reasonText(m map[string]uint64) string {
	if len(m) == 0 {
		return "none"
	}
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
	parts := make([]string, 0, len(names))
	for _, n := range names {
		parts = append(parts, fmt.Sprintf("%s %d", n, m[n]))
	}
	return strings.Join(parts, ", ")
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
