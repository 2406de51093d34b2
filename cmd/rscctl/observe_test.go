package main

import (
	"bytes"
	"testing"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/observe"
)

func sampleObserved() *observe.Report {
	merged := bpf.ObservedTCP{Frames: 60000, Bytes: 2780000000, DataFrames: 52000, PayloadBytes: 2750000000, Segments: 1900000, BulkTrains: 48000,
		BulkFrames: [5]uint64{1000, 500, 500, 18000, 30000}, BulkSegments: [5]uint64{1000, 3000, 8000, 538000, 1350000},
		BulkBytes: [5]uint64{1448000, 4344000, 11584000, 779024000, 1953600000}}
	single := bpf.ObservedTCP{Frames: 900000, Bytes: 1300000000, DataFrames: 900000, PayloadBytes: 1240000000, Segments: 900000, BulkTrains: 22000,
		BulkFrames: [5]uint64{850000}, BulkSegments: [5]uint64{850000}, BulkBytes: [5]uint64{1230800000}}
	whole := observe.Takes{IPv4: true, IPv6: true}
	rep := &observe.Report{Schema: observe.Schema, Seconds: 10}
	for _, s := range []observe.Sample{
		{Name: "vnet0", Kind: observe.Tap, Bridge: "br0", Counts: bpf.Observed{TCP: [2]bpf.ObservedTCP{merged}, OtherFrames: 120, OtherBytes: 9000}, Takes: whole, DeviceBytes: 2780009000},
		{Name: "vnet1", Kind: observe.Tap, Bridge: "br0", Counts: bpf.Observed{TCP: [2]bpf.ObservedTCP{1: single}}, Takes: whole, Dropped: 1234, GROOff: []string{"eth1"}},
		{Name: "vnet2", Kind: observe.Tap, Takes: whole},
		{Name: "eth1", Kind: observe.Uplink, Bridge: "br0", Counts: bpf.Observed{TCP: [2]bpf.ObservedTCP{single}}, GROOff: []string{"eth1"}},
	} {
		s.Seconds = rep.Seconds
		rep.Interfaces = append(rep.Interfaces, observe.Judge(s))
	}
	rep.Interfaces = append(rep.Interfaces, observe.Interface{Name: "vnet3", Kind: observe.Tap, Bulk: []observe.Size{}, Error: "vnet3: tc: attach: no such interface"})
	return rep
}

func TestOutputOfObserveIsStable(t *testing.T) {
	var table, js bytes.Buffer
	if err := printObserved(&table, sampleObserved()); err != nil {
		t.Fatal(err)
	}
	golden(t, "observe.golden", table.String())
	if err := printJSON(&js, sampleObserved()); err != nil {
		t.Fatal(err)
	}
	golden(t, "observe.json.golden", js.String())
}
