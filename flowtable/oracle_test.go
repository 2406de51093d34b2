package flowtable_test

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// oracle is the decision table once more, in the simplest way: packets as pt.TCP describes them, flows by name, lists that
// are searched. It is slow and has no limits of memory. What leaves, and why, must be the same as with the table, port by
// port. Structure is packet.Parse's business, which has tests of its own.
type oracle struct {
	ports []*oraclePort
}

type oraclePort struct {
	cfg  flowtable.PortConfig
	list []*held // in order of first packets
	out  []string
}

type held struct {
	flow   string // empty: passed alone, waiting
	refs   []int
	first  pt.TCP
	last   pt.TCP
	next   uint32
	ipLen  int
	mss    int
	segs   int
	ids    []uint16
	born   int64
	reason string // why it was closed; empty: open
}

func newOracle(ports []flowtable.PortConfig) *oracle {
	o := &oracle{}
	for _, c := range ports {
		o.ports = append(o.ports, &oraclePort{cfg: c})
	}
	return o
}

func (p *oraclePort) deliver(h *held) {
	var b bytes.Buffer
	for i, r := range h.refs {
		if i > 0 {
			b.WriteByte('+')
		}
		fmt.Fprint(&b, r)
	}
	p.out = append(p.out, b.String()+" "+h.reason)
}

// close ends what is held; it leaves now, or, with hold 0, when nothing older is held.
func (p *oraclePort) close(h *held, reason string) {
	h.reason = reason
	p.flush()
}

func (p *oraclePort) flush() {
	keep := p.list[:0]
	for i, h := range p.list {
		if h.reason != "" && (p.cfg.Hold > 0 || len(keep) == 0) {
			p.deliver(h)
			continue
		}
		keep = append(keep, p.list[i])
	}
	p.list = keep
}

func (p *oraclePort) closeAll(reason string) {
	for _, h := range p.list {
		if h.reason == "" {
			h.reason = reason
		}
	}
	p.flush()
}

func (o *oracle) endBurst(now int64) {
	for _, p := range o.ports {
		if p.cfg.Hold == 0 {
			p.closeAll("burst_end")
		}
	}
	o.expire(now)
}

func (o *oracle) expire(now int64) {
	for _, p := range o.ports {
		for _, h := range p.list {
			if p.cfg.Hold > 0 && h.born+int64(p.cfg.Hold) <= now {
				h.reason = "deadline"
			}
		}
		p.flush()
	}
}

func (p *oraclePort) find(flow string) *held {
	for _, h := range p.list {
		if h.reason == "" && h.flow == flow {
			return h
		}
	}
	return nil
}

// pass closes the flow's head, if any, and lets the packet leave alone behind it.
func (p *oraclePort) pass(h *held, ref int, reason string) {
	if h != nil {
		p.close(h, reason)
	}
	p.list = append(p.list, &held{refs: []int{ref}, reason: reason})
	p.flush()
}

// looseFlow names the flow of a packet that is malformed or cut, if addresses and ports are there.
func looseFlow(in *input) string {
	f, i := in.frame, in.info
	if i.Keyed {
		return flowOf(in)
	}
	if i.Verdict != packet.Malformed && i.Verdict != packet.Truncated || i.L3 == 0 {
		return ""
	}
	ip := f[min(int(i.L3), len(f)):]
	switch {
	case i.Family == 4 && len(ip) >= 20 && ip[0]>>4 == 4 && ip[0]&15 >= 5 && ip[9] == 6 && ip[6]&0x1f == 0 && ip[7] == 0:
		i.L4 = i.L3 + uint32(ip[0]&15)*4
	case i.Family == 6 && len(ip) >= 40 && ip[0]>>4 == 6 && ip[6] == 6:
		i.L4 = i.L3 + 40
	default:
		return ""
	}
	if len(f) < int(i.L4)+4 {
		return ""
	}
	i.Keyed = true
	return flowOf(&input{frame: f, info: i, port: in.port})
}

// add is section 7.1.
func (o *oracle) add(ref int, in *input, now int64) {
	p := o.ports[in.port]
	c := &p.cfg
	v := in.info.Verdict
	if in.gso || v != packet.OK {
		reason := v.String()
		if in.gso {
			reason = "gso_input"
		}
		var h *held
		if flow := looseFlow(in); flow != "" {
			h = p.find(flow)
		} else if pair := pairOf(in); pair != "" {
			for _, h := range p.list {
				if h.reason == "" && strings.HasPrefix(h.flow, pair) {
					h.reason = reason
				}
			}
			p.flush()
		}
		p.pass(h, ref, reason)
		return
	}
	q, err := pt.Read(in.frame)
	if err != nil {
		panic(err) // Parse said OK
	}
	rsc := c.Profile == flowtable.RSC && c.RSCExt
	if r := gate(c, &q, rsc); r != "" {
		p.pass(nil, ref, r)
		return
	}
	h := p.find(flowOf(in))
	if r := alone(c, &q, in, h, rsc); r != "" {
		p.pass(h, ref, r)
		return
	}
	if len(q.Payload) == 0 {
		h.refs = append(h.refs, ref)
		h.last.Win = q.Win
		return
	}
	if h == nil {
		if !rsc && q.Flags&(pt.PSH|pt.FIN) != 0 {
			p.pass(nil, ref, psh(q.Flags))
			return
		}
		p.start(ref, &q, in, now, rsc)
		return
	}
	if r := mismatch(c, h, &q, rsc); r != "" {
		if !rsc && q.Flags&(pt.PSH|pt.FIN) != 0 {
			p.pass(h, ref, r)
			return
		}
		p.close(h, r)
		p.start(ref, &q, in, now, rsc)
		return
	}
	h.refs = append(h.refs, ref)
	h.next += uint32(len(q.Payload))
	h.ipLen += len(q.Payload)
	h.ids = append(h.ids, q.ID)
	h.last = q
	h.segs++
	short := len(q.Payload) < h.mss
	h.mss = max(h.mss, len(q.Payload))
	switch {
	case !rsc && short:
		p.close(h, "short")
	case q.Flags&pt.PSH != 0 && (!rsc || c.PSHClose):
		p.close(h, "psh")
	case q.Flags&pt.FIN != 0:
		p.close(h, "fin")
	case c.MaxSegments > 0 && h.segs >= c.MaxSegments:
		p.close(h, "max_segments")
	}
}

func psh(flags uint16) string {
	if flags&pt.PSH != 0 {
		return "psh"
	}
	return "fin"
}

func (p *oraclePort) start(ref int, q *pt.TCP, in *input, now int64, rsc bool) {
	h := &held{flow: flowOf(in), refs: []int{ref}, first: *q, last: *q, next: q.Seq + uint32(len(q.Payload)), mss: len(q.Payload), segs: 1, ids: []uint16{q.ID}, born: now}
	h.ipLen = int(in.info.Payload + in.info.PayloadLen - in.info.L3)
	p.list = append(p.list, h)
	switch {
	case rsc && p.cfg.PSHClose && q.Flags&pt.PSH != 0:
		p.close(h, "psh")
	case p.cfg.MaxSegments == 1:
		p.close(h, "max_segments")
	}
}
