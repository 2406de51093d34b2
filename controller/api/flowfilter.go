package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// FlowEnd is one end of a flow. An invalid Addr is any, and so is Port 0.
type FlowEnd struct {
	Addr netip.Addr
	Port uint16
}

// FlowFilter chooses flows by their ends, in either direction. The zero value chooses all.
type FlowFilter struct{ A, B FlowEnd }

// ParseFlowFilter reads END or END,END, where END is ADDR, ADDR:PORT or :PORT; an IPv6 address with a port has brackets. Blanks
// are left out, and > is read as the comma, so that a flow can be given as it is printed. "" chooses all. The error is ErrUsage.
func ParseFlowFilter(text string) (f FlowFilter, err error) {
	if text == "" {
		return f, nil
	}
	fail := func() (FlowFilter, error) {
		return FlowFilter{}, fmt.Errorf("flow %q: %w: say ADDR, ADDR:PORT, :PORT or [ADDR]:PORT, one end or both with a comma between them", text, ErrUsage)
	}
	ends := strings.Split(strings.ReplaceAll(text, ">", ","), ",")
	if len(ends) > 2 {
		return fail()
	}
	into := []*FlowEnd{&f.A, &f.B}
	for i, end := range ends {
		if *into[i], err = parseFlowEnd(strings.TrimSpace(end)); err != nil {
			return fail()
		}
	}
	return f, nil
}

func parseFlowEnd(text string) (e FlowEnd, err error) {
	host, port := text, ""
	switch at := strings.LastIndexByte(text, ':'); {
	case strings.HasPrefix(text, "["):
		end := strings.IndexByte(text, ']')
		if end < 0 {
			return e, ErrUsage
		}
		host = text[1:end]
		if rest := text[end+1:]; rest != "" {
			if rest[0] != ':' || len(rest) == 1 {
				return e, ErrUsage
			}
			port = rest[1:]
		}
		if !strings.Contains(host, ":") {
			return e, ErrUsage
		}
	case at >= 0 && at == strings.IndexByte(text, ':'): // more than one: an IPv6 address
		if host, port = text[:at], text[at+1:]; port == "" {
			return e, ErrUsage
		}
	}
	if host == "" && port == "" {
		return e, ErrUsage
	}
	if host != "" {
		a, err := netip.ParseAddr(host)
		if err != nil || a.Zone() != "" {
			return e, ErrUsage
		}
		e.Addr = a.Unmap()
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return e, ErrUsage
		}
		e.Port = uint16(n)
	}
	return e, nil
}
