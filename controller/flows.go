package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
)

// flowOrders are the sort keys of Flows; every one puts the largest or newest first.
var flowOrders = map[api.FlowSort]func(a, b api.Flow) int{
	api.SortBytes:   func(a, b api.Flow) int { return cmp.Compare(b.Bytes, a.Bytes) },
	api.SortPackets: func(a, b api.Flow) int { return cmp.Compare(b.Packets, a.Packets) },
	api.SortRate:    func(a, b api.Flow) int { return cmp.Compare(b.BitsPerSec, a.BitsPerSec) },
	api.SortAge:     func(a, b api.Flow) int { return cmp.Compare(a.AgeNS, b.AgeNS) },
	api.SortVM:      func(a, b api.Flow) int { return strings.Compare(a.VM, b.VM) },
}

func sortFlows(flows []api.Flow, order func(a, b api.Flow) int) {
	slices.SortFunc(flows, func(a, b api.Flow) int { return cmp.Or(order(a, b), byName(a, b)) })
}

// byName orders flows that a key finds equal: no two of them are, so a list is the same each time.
func byName(a, b api.Flow) int {
	return cmp.Or(strings.Compare(a.VM, b.VM), strings.Compare(a.Iface, b.Iface), strings.Compare(string(a.Direction), string(b.Direction)),
		strings.Compare(a.Src, b.Src), cmp.Compare(a.SrcPort, b.SrcPort), strings.Compare(a.Dst, b.Dst), cmp.Compare(a.DstPort, b.DstPort))
}

// tcpFlagNames name the bits of byte 13 of the TCP header, lowest first (RFC 9293, 3.1).
var tcpFlagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

// Flows reads the VMs' flow maps. sort is a key of flowOrders ("" is bytes), limit 0 means all.
func (c *Controller) Flows(iface, vm string, sort api.FlowSort, limit int) (api.Flows, error) {
	out := api.Flows{Schema: api.Schema, Flows: []api.Flow{}}
	if sort == "" {
		sort = api.SortBytes
	}
	order, ok := flowOrders[sort]
	if !ok {
		return out, fmt.Errorf("flows: sort %q: %w: use bytes, packets, rate, age or vm", sort, ErrUsage)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if iface != "" && c.uplinks[iface] == nil {
		return out, fmt.Errorf("flows: %w", c.unknownIface(iface))
	}
	if vm != "" {
		if _, err := c.findVM(vm); err != nil {
			return out, fmt.Errorf("flows: %w", err)
		}
	}
	now := monotonic()
	for _, u := range c.uplinks {
		var slots *bpf.SlotView
		for _, v := range u.vms {
			if (iface != "" && u.name != iface) || (vm != "" && v.req.VM != vm) {
				continue
			}
			if u.foreign != nil {
				out.Notes = append(out.Notes, noFlows(u.name))
				break
			}
			if slots == nil {
				slots = u.prog.Slots()
			}
			rows, err := slots.Flows(v.id(), v.flows)
			if err != nil {
				return out, fmt.Errorf("flows: VM %s: %w", v.req.VM, err)
			}
			out.Evicted += u.prog.Evicted(v.id(), rows)
			for _, r := range rows {
				out.Flows = append(out.Flows, flowRow(v, r, now))
			}
		}
	}
	sortFlows(out.Flows, order)
	out.Total = len(out.Flows)
	if limit > 0 && limit < len(out.Flows) {
		out.Flows = out.Flows[:limit]
	}
	return out, nil
}

// retainFlows drops the flows of VMs that are neither attached nor wait to be: who attaches a VM of such a name begins anew. The
// caller holds mu.
func (c *Controller) retainFlows() {
	if c.flows == nil {
		return
	}
	known := map[string]bool{}
	for _, u := range c.uplinks {
		for name := range u.vms {
			known[name] = true
		}
	}
	for _, list := range c.waiting {
		for _, w := range list {
			known[w.vm.Name] = true
		}
	}
	if err := c.flows.Retain(func(vm string) bool { return known[vm] }); err != nil {
		c.log.Warn("flows of VMs that have gone", "err", err)
	}
}

func flowRow(v *attachment, r bpf.Flow, now int64) api.Flow {
	f := api.Flow{
		Iface: v.up.name, VM: v.req.VM, Direction: api.ToGuest, VLAN: v.req.VLAN, Family: int(r.Key.Family),
		Src: r.Key.Src().Addr().String(), Dst: r.Key.Dst().Addr().String(), SrcPort: r.Key.SrcPort, DstPort: r.Key.DstPort,
		Packets: r.Stats.Packets(), Bytes: r.Stats.Bytes, PayloadBytes: r.Stats.PayloadBytes,
		FirstNS: int64(r.Stats.FirstNS), LastNS: int64(r.Stats.LastNS), AgeNS: max(0, now-int64(r.Stats.LastNS)),
		TCPFlags: []string{}, Verdicts: map[string]uint64{},
	}
	if r.Key.Dir == bpf.DirToWire {
		f.Direction = api.ToWire
	}
	for i, name := range tcpFlagNames {
		if r.Stats.TCPFlags&(1<<i) != 0 {
			f.TCPFlags = append(f.TCPFlags, name)
		}
	}
	for i, n := range r.Stats.Verdicts {
		if n > 0 {
			f.Verdicts[bpf.VerdictName(i)] = n
		}
	}
	if d := f.LastNS - f.FirstNS; d > 0 {
		f.BitsPerSec = float64(f.Bytes) * 8 / (float64(d) / float64(time.Second))
	}
	return f
}

// monotonic is the clock of bpf_ktime_get_coarse_ns, which is behind it by up to a tick.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
