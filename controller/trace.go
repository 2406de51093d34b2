package controller

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// serveTrace answers with a stream of the fates of a VM's frames.
func (c *Controller) serveTrace(w http.ResponseWriter, r *http.Request) {
	cfg := datapath.ProbeConfig{Kind: datapath.ProbeFates}
	var err error
	if err = checkParams(r, "vm", "flow", "events"); err == nil {
		cfg.Deeds, err = traceEvents(r.FormValue("events"))
	}
	if err == nil {
		cfg.Flow, err = flowMatch(r.FormValue("flow"))
	}
	if err != nil {
		refuse(w, fmt.Errorf("trace: %w", err))
		return
	}
	l, err := c.listen("trace", r.FormValue("vm"), cfg)
	if err != nil {
		refuse(w, err)
		return
	}
	defer c.unlisten("trace", l)
	w.Header().Set("Content-Type", "application/x-ndjson")
	c.stream(w, r, l, traceLines{}, traceLine(nil, &api.TraceEvent{Event: api.TraceBegin, Schema: api.Schema, VM: l.vm, Iface: l.iface}))
}

// traceDeeds are what the fates are on the data path.
var traceDeeds = map[api.TraceEventKind]datapath.Deed{api.TraceSeal: datapath.Sealed, api.TracePass: datapath.Passed, api.TraceDrop: datapath.Dropped}

// traceEvents reads api.TraceQuery.Events.
func traceEvents(list string) (deeds datapath.DeedSet, err error) {
	if list == "" {
		return deeds, nil
	}
	for name := range strings.SplitSeq(list, ",") {
		d, ok := traceDeeds[api.TraceEventKind(name)]
		if !ok {
			return deeds, fmt.Errorf("events: %q: %w: say seal, pass, drop or some of them with commas between", name, ErrUsage)
		}
		deeds = deeds.With(d)
	}
	return deeds, nil
}

func flowMatch(text string) (m datapath.FlowMatch, err error) {
	f, err := api.ParseFlowFilter(text)
	return datapath.FlowMatch{A: datapath.Endpoint(f.A), B: datapath.Endpoint(f.B)}, err
}

// traceLines is an encoder of lines of JSON.
type traceLines struct{}

func traceLine(b []byte, e *api.TraceEvent) []byte {
	line, err := json.Marshal(e)
	if err != nil { // of a struct of plain fields: cannot be
		return b
	}
	return append(append(b, line...), '\n')
}

func (traceLines) record(b []byte, queue int, r *datapath.ProbeRecord) []byte {
	e := api.TraceEvent{
		TimeNS: r.Time, Queue: queue, Direction: api.ToGuest, Reason: r.Reason.String(), Packets: r.Packets, Segments: r.Segments, Len: r.Len, HeldNS: r.Held,
	}
	for event, d := range traceDeeds {
		if d == r.Deed {
			e.Event = event
		}
	}
	if r.ToWire {
		e.Direction = api.ToWire
	}
	if len(r.Data) >= 2*macLen+2 {
		e.DstMAC, e.SrcMAC = net.HardwareAddr(r.Data[:macLen]).String(), net.HardwareAddr(r.Data[macLen:2*macLen]).String()
		e.EtherType = binary.BigEndian.Uint16(r.Data[2*macLen:])
	}
	if f, ok := datapath.FlowOf(r.Data, r.Len); ok {
		e.Src, e.Dst = f.Src.Addr().String(), f.Dst.Addr().String()
		e.SrcPort, e.DstPort = f.Src.Port(), f.Dst.Port()
	}
	return traceLine(b, &e)
}

func (traceLines) lost(b []byte, n uint64) []byte {
	return traceLine(b, &api.TraceEvent{Event: api.TraceLost, Count: n})
}

func (traceLines) end(b []byte, why string) []byte {
	return traceLine(b, &api.TraceEvent{Event: api.TraceEnd, Why: why})
}
