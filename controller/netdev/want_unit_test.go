package netdev

import (
	"slices"
	"strings"
	"testing"
)

// What changes under a program and its sockets is said; what does not concern them is not.
func TestWhatMustStayTrueOfAnUplink(t *testing.T) {
	want := Want{RxQueues: 2, MaxMTU: 1774, Program: 7}
	base := Facts{Name: "eth0", RxQueues: 2, MTU: 1500, XDP: XDP{Attached: true, Mode: "native", ProgID: 7}}
	for name, c := range map[string]struct {
		edit func(w *Want, f *Facts)
		says string
	}{
		"nothing":              {func(w *Want, f *Facts) {}, ""},
		"another name":         {func(w *Want, f *Facts) { f.Name = "wan" }, ""},
		"queues":               {func(w *Want, f *Facts) { f.RxQueues = 4 }, "queues changed from 2 to 4"},
		"an MTU that fits":     {func(w *Want, f *Facts) { f.MTU = 1774 }, ""},
		"a small MTU":          {func(w *Want, f *Facts) { f.MTU = 576 }, ""},
		"an MTU too large":     {func(w *Want, f *Facts) { f.MTU = 1775 }, "MTU is 1775 now, and what is open holds at most 1774"},
		"program taken off":    {func(w *Want, f *Facts) { f.XDP = XDP{} }, "took the XDP program off"},
		"another program":      {func(w *Want, f *Facts) { f.XDP.ProgID = 8 }, "program 8"},
		"one on the NIC, too":  {func(w *Want, f *Facts) { f.XDP = XDP{Attached: true, Mode: "multi"} }, ""},
		"none wanted":          {func(w *Want, f *Facts) { w.Program, f.XDP = 0, XDP{} }, ""},
		"none wanted, foreign": {func(w *Want, f *Facts) { w.Program, f.XDP.ProgID = 0, 8 }, ""},
	} {
		w, f := want, base
		c.edit(&w, &f)
		if got := w.Broken(&f); !strings.Contains(got, c.says) || (got == "") != (c.says == "") {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}

func TestOffloadsThatWereSwitchedOn(t *testing.T) {
	off, on := &Facts{}, &Facts{RxVLAN: true, LRO: true, GROHW: true}
	if got := SwitchedOn(off, on); !slices.Equal(got, []string{RxVLAN, LRO, GROHW}) {
		t.Errorf("%v", got)
	}
	for _, f := range []*Facts{off, on} {
		if got := SwitchedOn(f, f); got != nil {
			t.Errorf("no change: %v", got)
		}
	}
	if got := SwitchedOn(on, off); got != nil {
		t.Errorf("switched off: %v", got)
	}
}
