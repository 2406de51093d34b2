package main

import (
	"bytes"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/doctor"
)

func sampleReport() doctor.Report {
	return doctor.Report{Schema: api.Schema, Findings: []doctor.Finding{
		{ID: "iface.mtu", Severity: doctor.Error, Subject: "eth1", What: "MTU 9000", Why: "attach refuses more than 3822: xsk: frames in several chunks (XDP_USE_SG, Linux 6.6): not supported by the kernel or the driver", Remedy: "ip link set dev eth1 mtu 3822"},
		{ID: "peer.tx_checksum", Severity: doctor.Warning, Subject: "veth1", What: "its peer veth0 leaves TCP checksums to the receiver (tx-checksumming is on)", Why: "such frames are never merged, and the guest drops them",
			Remedy: "ethtool -K veth0 tx off", Fixable: true},
		{ID: "bpf.programs", Severity: doctor.Note, Subject: doctor.Host, What: "whether the kernel takes the BPF programs was not looked at", Why: "you are not root", Remedy: "run it as root: sudo rscctl doctor"},
		{ID: "kernel.version", Severity: doctor.OK, Subject: doctor.Host, What: "Linux 6.12.9"},
	}}
}

func TestDoctorsOutputIsStable(t *testing.T) {
	fixed := sampleReport()
	fixed.Fixed = []string{"tx-checksumming switched off on veth0"}
	undone := doctor.Report{Schema: api.Schema, Findings: []doctor.Finding{}, Undone: []string{"tx-checksumming switched on again on veth0"}}
	for _, c := range []struct {
		golden        string
		report        doctor.Report
		undo, verbose bool
	}{
		{"doctor.golden", sampleReport(), false, false},
		{"doctor-verbose.golden", sampleReport(), false, true},
		{"doctor-fix.golden", fixed, false, false},
		{"doctor-undo.golden", undone, true, false},
		{"doctor-undo-nothing.golden", doctor.Report{}, true, false},
	} {
		var out bytes.Buffer
		if err := printReport(newPrinter(&out), c.report, c.undo, c.verbose); err != nil {
			t.Fatal(err)
		}
		golden(t, c.golden, out.String())
	}
	for name, report := range map[string]doctor.Report{"doctor.json.golden": fixed, "doctor-undo.json.golden": undone} {
		var out bytes.Buffer
		if err := printJSON(&out, report); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
	}
}
