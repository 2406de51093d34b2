package observe

import (
	"strings"
	"testing"

	"github.com/rscctl/rscctl/bpf"
)

// bulk is what was counted of so many full-sized frames, each of so many segments, that could have been trains of so many.
func bulk(frames, segments, train uint64) (c bpf.ObservedTCP) {
	bin := 0
	for n, s := range sizes {
		if int(segments) >= s.From {
			bin = n
		}
	}
	all := frames * segments
	c = bpf.ObservedTCP{Frames: frames, DataFrames: frames, Segments: all, PayloadBytes: 1448 * all, Bytes: 1448*all + 66*frames, BulkTrains: all / train}
	c.BulkFrames[bin], c.BulkSegments[bin], c.BulkBytes[bin] = frames, all, 1448*all
	return c
}

func tapSample(v4 bpf.ObservedTCP) Sample {
	s := Sample{Name: "vnet0", Kind: Tap, Seconds: 10, Takes: Takes{true, true}, Counts: bpf.Observed{TCP: [2]bpf.ObservedTCP{v4}}}
	s.DeviceBytes = v4.Bytes
	return s
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Sample
		code Code
		says string
	}{
		{"merged", tapSample(bulk(10000, 38, 38)), Merged, "merges for this VM already (38 segments a frame): rscctl would add nothing but the switch and the account"},
		{"one by one", tapSample(bulk(400000, 1, 45)), Single, "frames arrive one by one: merging would save the guest about 39 % of its receive CPU"},
		{"in part", tapSample(bulk(100000, 3, 45)), Partly, "(3.0 segments a frame): merging more would save"},
		{"nothing follows", tapSample(bulk(400000, 1, 1)), Apart, "one by one, and their senders leave little to merge"},
		{"slow", tapSample(bulk(400, 1, 40)), Slow, "at 0.46 Mbit/s of bulk TCP there is little to save"},
		{"nothing", tapSample(bpf.ObservedTCP{}), TooLittle, "too little TCP traffic to judge (0 bulk segments in 10 s"},
		{"nearly nothing", tapSample(bulk(199, 1, 40)), TooLittle, "run it while the VM receives"},
		{"just enough", tapSample(bulk(200, 1, 40)), Slow, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Judge(c.s).Verdict
			if v.Code != c.code || !strings.Contains(v.Text, c.says) {
				t.Errorf("%s: %s", v.Code, v.Text)
			}
		})
	}
}

func TestVerdictsOfWhatStandsAround(t *testing.T) {
	single, merged := bulk(400000, 1, 45), bulk(10000, 38, 38)
	for _, c := range []struct {
		name   string
		counts bpf.ObservedTCP
		change func(s *Sample)
		code   Code
		says   string
	}{
		{"GRO is off", single, func(s *Sample) { s.GROOff = []string{"eth0"} }, Single, "GRO is off on eth0: try 'ethtool -K eth0 gro on' first"},
		{"no large frames", merged, func(s *Sample) { s.Takes.IPv4 = false }, Refused, "rx-gro-hw on"},
		{"none but of the other family", merged, func(s *Sample) { s.Takes.IPv6 = false }, Merged, ""},
		{"no header", single, func(s *Sample) { s.Takes, s.NoVnetHdr = Takes{}, true }, Refused, "vnet_hdr=on"},
		{"attached", merged, func(s *Sample) { s.Served = true }, Served, "(38 segments a frame)"},
		{"attached and idle", bpf.ObservedTCP{}, func(s *Sample) { s.Served = true }, Served, "no bulk TCP yet"},
		{"another way", bpf.ObservedTCP{}, func(s *Sample) { s.DeviceBytes = 5e9 }, Unseen, "5000000000 bytes reached this VM and only 0"},
		{"no VM", bpf.ObservedTCP{}, func(s *Sample) { s.NoReader = true }, NoReader, "no VM"},
		{"an uplink that merges", merged, func(s *Sample) { s.Kind = Uplink }, Merged, "merges what comes in here"},
		{"an uplink that does not", single, func(s *Sample) { s.Kind = Uplink }, Single, "though GRO is on"},
		{"an uplink without GRO", single, func(s *Sample) { s.Kind, s.GROOff = Uplink, []string{"eth0"} }, Single, "try 'ethtool -K eth0 gro on'"},
		{"an uplink in part", bulk(1000, 3, 40), func(s *Sample) { s.Kind = Uplink }, Partly, "a part of what comes in"},
		{"an idle uplink", bpf.ObservedTCP{}, func(s *Sample) { s.Kind = Uplink }, TooLittle, "while something comes in"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := tapSample(c.counts)
			c.change(&s)
			r := Judge(s)
			if r.Verdict.Code != c.code || !strings.Contains(r.Verdict.Text, c.says) {
				t.Errorf("%s: %s", r.Verdict.Code, r.Verdict.Text)
			}
			if (r.Takes != nil) != (s.Kind == Tap) || r.Saving != nil && s.Kind != Tap {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A tap that does not take large frames has them cut after they were counted.
func TestFiguresAreOfWhatIsDelivered(t *testing.T) {
	s := tapSample(bulk(1000, 45, 45))
	s.Counts.TCP[1] = bulk(1000, 10, 45)
	s.Counts.TCP[1].Frames += 7 // without payload
	s.Counts.OtherFrames, s.Counts.OtherBytes = 3, 300
	r := Judge(s)
	if r.DataFrames != 2000 || r.EmptyFrames != 7 || r.OtherFrames != 3 || r.SegmentsPerFrame != 27.5 || r.BytesPerFrame != 27.5*1448 || r.FramesPerSec != 201 {
		t.Errorf("whole: %+v", r)
	}
	if want := 45.0 / 55; !about(r.Share22, want) {
		t.Errorf("share %v, want %v", r.Share22, want)
	}
	s.Takes.IPv6 = false
	if r = Judge(s); r.DataFrames != 1000+10000 || r.SegmentsPerFrame != 5 || r.Bulk[0].Frames != 10000 || r.Bulk[4].Frames != 1000 || r.Bulk[2].Frames != 0 {
		t.Errorf("IPv6 cut: %+v", r)
	}
	if sizes[0].Frames != 0 {
		t.Error("two reports share their classes")
	}
}

func TestTheLargestClassesAreThoseOf22AndMore(t *testing.T) {
	if sizes[large].From != 22 {
		t.Errorf("%+v", sizes[large])
	}
}
