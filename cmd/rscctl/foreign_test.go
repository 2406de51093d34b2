package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// status says of an interface whose XDP program is somebody else's what it is, by which map its frames come, and what is not offered.
func TestStatusSaysWhoseProgramItIs(t *testing.T) {
	st := sampleStatus()
	nic := &st.Interfaces[0]
	nic.Queues[0].RxNobody, nic.Queues[1].RxNobody = 3, 4
	nic.Name, nic.XDPMode, nic.Metadata = "eth7", "", nil
	for which, f := range map[string]api.ForeignProgram{`foreign (7 "theirs")`: {ID: 7, Name: "theirs"}, "foreign": {}} {
		f.XSKMap, f.Queues, f.NotOffered = "/sys/fs/bpf/xsks", []uint16{0, 1}, []string{"flows", "taps"}
		nic.Foreign = &f
		var out bytes.Buffer
		if err := (statusView{st: &st, now: st.StartedAt}).print(&out); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(strings.Fields(out.String()), " ")
		if want := "eth7: program: " + which + ", xsk-map /sys/fs/bpf/xsks, queues 0,1 for nobody: 7 frames dropped not offered: flows; taps"; !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// flows says why there are none, instead of that there are none yet.
func TestFlowsSaysWhyThereAreNone(t *testing.T) {
	var out bytes.Buffer
	if err := printFlows(&out, &api.Flows{Notes: []string{"eth7: its XDP program is somebody else's"}}); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "somebody else's") || strings.Contains(text, "no flows yet") {
		t.Errorf("%s", text)
	}
}
