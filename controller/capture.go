package controller

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/flowtable"
)

// serveCapture answers with a stream of a VM's frames.
func (c *Controller) serveCapture(w http.ResponseWriter, r *http.Request) {
	cfg, head, err := captureConfig(r)
	if err != nil {
		refuse(w, fmt.Errorf("capture: %w", err))
		return
	}
	l, err := c.listen("capture", r.FormValue("vm"), cfg)
	if err != nil {
		refuse(w, err)
		return
	}
	defer c.unlisten("capture", l)
	head.VM, head.Iface = l.vm, l.iface
	if l.a.kind.bridged() && head.Side == api.SideWire {
		head.Note = fmt.Sprintf("VM %s is on its own tap: only the TCP frames that are steered to it come by here; 'tcpdump -i %s' sees the rest, and what it sends", head.VM, l.a.place())
	}
	line, err := json.Marshal(head)
	if err != nil {
		refuse(w, fmt.Errorf("capture: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	c.stream(w, r, l, captureBlocks{}, append(line, '\n'))
}

func captureConfig(r *http.Request) (cfg datapath.ProbeConfig, head api.CaptureHead, err error) {
	if err := checkParams(r, "vm", "side", "snaplen", "flow"); err != nil {
		return cfg, head, err
	}
	head = api.CaptureHead{Schema: api.Schema, Side: api.Side(r.FormValue("side")), SnapLen: api.MaxSnapLen, Deeds: datapath.DeedNames(), Reasons: reasonNames()}
	switch head.Side {
	case "":
		head.Side = api.Sides[0]
		cfg.Kind = datapath.ProbeWire
	case api.SideWire:
		cfg.Kind = datapath.ProbeWire
	case api.SideGuest:
		cfg.Kind = datapath.ProbeGuest
	default:
		return cfg, head, fmt.Errorf("side %q: %w: say wire or guest", head.Side, ErrUsage)
	}
	if s := r.FormValue("snaplen"); s != "" {
		if head.SnapLen, err = strconv.Atoi(s); err != nil || head.SnapLen < api.MinSnapLen || head.SnapLen > api.MaxSnapLen {
			return cfg, head, fmt.Errorf("snaplen %q: %w: use %d to %d", s, ErrUsage, api.MinSnapLen, api.MaxSnapLen)
		}
	}
	cfg.SnapLen = head.SnapLen
	cfg.Flow, err = flowMatch(r.FormValue("flow"))
	return cfg, head, err
}

// captureBlocks is an encoder of api.CaptureBlocks.
type captureBlocks struct{}

func (captureBlocks) record(b []byte, queue int, r *datapath.ProbeRecord) []byte {
	h := &r.Hdr
	k := api.CaptureBlock{
		Kind: api.BlockFrame, Deed: uint8(r.Deed), Reason: uint8(r.Reason), ToWire: r.ToWire, Queue: uint16(queue), Len: uint32(r.Len),
		Packets: uint32(r.Packets), Segments: uint32(r.Segments), TimeNS: r.Time, Data: r.Data,
		Hdr: api.VirtioHeader{Flags: h.Flags, GSOType: h.GSOType, HdrLen: h.HdrLen, GSOSize: h.GSOSize, CsumStart: h.CsumStart, CsumOffset: h.CsumOffset, NumBuffers: h.NumBuffers},
	}
	return k.Append(b)
}

func (captureBlocks) lost(b []byte, n uint64) []byte {
	k := api.CaptureBlock{Kind: api.BlockLost, Count: n}
	return k.Append(b)
}

func (captureBlocks) end(b []byte, why string) []byte {
	k := api.CaptureBlock{Kind: api.BlockEnd, Data: []byte(why)}
	return k.Append(b)
}

// reasonNames are the reasons' names by their numbers.
func reasonNames() (names []string) {
	for r := range flowtable.Reason(flowtable.NumReasons) {
		names = append(names, r.String())
	}
	return names
}
