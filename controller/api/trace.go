package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// ErrEnded means that a stream ended because of what happened to the VM or to the controller. The text says what.
var ErrEnded = errors.New("the stream has ended")

// TraceEventKind is what a line of a trace is about.
type TraceEventKind string

// The first line of a trace is a begin, the last one an end, unless the stream was cut.
const (
	TraceBegin TraceEventKind = "begin" // Schema, VM, Iface
	TraceSeal  TraceEventKind = "seal"  // a superframe left the flow table: nothing joins it any more
	TracePass  TraceEventKind = "pass"  // a packet left the flow table alone
	TraceDrop  TraceEventKind = "drop"  // a frame was given up
	TraceLost  TraceEventKind = "lost"  // Count events are not in the trace: they came faster than they were read
	TraceEnd   TraceEventKind = "end"   // Why
)

// TraceFates are the events that are about frames, and can be chosen.
var TraceFates = []TraceEventKind{TraceSeal, TracePass, TraceDrop}

// TraceEvent is a line of a trace: JSON without a line end in it.
type TraceEvent struct {
	Event     TraceEventKind `json:"event"`
	TimeNS    int64          `json:"ts_ns,omitempty"` // since 1970, of the burst that the frame was in
	Queue     int            `json:"queue"`           // of the NIC, whose worker had the frame
	Direction Direction      `json:"direction,omitempty"`
	Reason    string         `json:"reason,omitempty"`
	Packets   int            `json:"packets,omitempty"`  // that the frame was made of
	Segments  int            `json:"segments,omitempty"` // of them with data
	Len       int            `json:"len,omitempty"`      // bytes, Ethernet first
	HeldNS    int64          `json:"held_ns,omitempty"`  // that the first packet waited, of seal and pass
	Src       string         `json:"src,omitempty"`      // of an IP packet
	Dst       string         `json:"dst,omitempty"`
	SrcPort   uint16         `json:"src_port,omitempty"` // of TCP and UDP
	DstPort   uint16         `json:"dst_port,omitempty"`
	SrcMAC    string         `json:"src_mac,omitempty"`
	DstMAC    string         `json:"dst_mac,omitempty"`
	EtherType uint16         `json:"ether_type,omitempty"`

	Count  uint64 `json:"count,omitempty"`
	Why    string `json:"why,omitempty"`
	Schema int    `json:"schema,omitempty"`
	VM     string `json:"vm,omitempty"`
	Iface  string `json:"iface,omitempty"`
}

// TraceQuery says what of a VM is traced. Events are the fates wanted; none means all.
type TraceQuery struct {
	VM     string
	Flow   string // see ParseFlowFilter
	Events string // comma-separated; see TraceFates
}

const maxTraceLine = 1 << 16 // bytes

// Trace hands every event to fn, from TraceBegin on, until ctx ends (which is returned), fn fails (likewise), or the stream ends:
// ErrEnded with the reason that the controller gave, or that it gave none.
func (c *Client) Trace(ctx context.Context, q TraceQuery, fn func(*TraceEvent) error) error {
	body, err := c.open(ctx, "/v1/trace", query{"vm": q.VM, "flow": q.Flow, "events": q.Events})
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxTraceLine)
	for lines.Scan() {
		var e TraceEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return c.cut(ctx, err)
		}
		if e.Event == TraceEnd {
			return fmt.Errorf("%w: %s", ErrEnded, e.Why)
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	return c.cut(ctx, lines.Err())
}

// open asks for a stream, which ctx ends.
func (c *Client) open(ctx context.Context, path string, q query) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://rscctl"+path+q.encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("client: request: %w", err)
	}
	endless := http.Client{Transport: c.http.Transport} // as long as somebody reads it
	resp, err := endless.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close()
		return nil, ReadError(resp)
	}
	return resp.Body, nil
}

// cut is what a stream without an end ends with. err: why, nil when the peer closed it.
func (c *Client) cut(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the controller at %s is gone, or closed it", ErrEnded, c.path)
	}
	return fmt.Errorf("%w: it cannot be read: %w", ErrEnded, err)
}
