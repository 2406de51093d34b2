package observe

import (
	"fmt"
	"strings"
)

// Code names a verdict, for programs.
type Code string

// The verdicts. Those of an uplink are Merged, Single and TooLittle.
const (
	Merged    Code = "merged"     // the kernel merges already
	Partly    Code = "partly"     // it merges less than could be
	Single    Code = "single"     // segments arrive one by one
	Apart     Code = "apart"      // they arrive one by one, and nothing could merge them
	Slow      Code = "slow"       // too few for the saving to matter
	Refused   Code = "refused"    // the VM takes no large frames
	Served    Code = "served"     // a controller has the VM attached
	TooLittle Code = "too_little" // too little TCP to judge
	Unseen    Code = "unseen"     // frames reach the VM by a way where they cannot be counted
	NoReader  Code = "no_reader"  // no VM has the tap open
)

// Verdict is what the counts come to.
type Verdict struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// What it takes to judge, and what counts as something.
const (
	minSegments   = 200  // of bulk TCP: below, a single transfer's start would decide
	minSaving     = 0.05 // of receive CPU: below, the model is not that exact
	minBitsPerSec = 50e6 // below, a guest spends about nothing on receiving
	mergedFrom    = 10   // segments a frame: 85 % of what can be gained
	singleBelow   = 1.5  // segments a frame
	minUnseen     = 1e6  // bytes
)

func (r *Interface) judge(s *Sample, bytes uint64) {
	v := func(code Code, format string, args ...any) {
		r.Verdict = &Verdict{Code: code, Text: fmt.Sprintf(format, args...)}
	}
	bulk, _ := r.bulk()
	now := r.SegmentsPerFrame
	switch {
	case s.NoReader:
		v(NoReader, "no VM has this tap open")
		return
	case s.Served:
		v(Served, "a controller has this VM attached, and these frames are its doing (%s): 'rscctl stats' says more", perFrame(now))
		return
	case s.DeviceBytes > 2*bytes && s.DeviceBytes-bytes >= minUnseen:
		v(Unseen, "%d bytes reached this VM and only %d could be counted: another TC program takes the rest first, or they come by a way around TC", s.DeviceBytes, bytes)
		return
	case bulk.Segments < minSegments:
		v(TooLittle, "too little TCP traffic to judge (%d bulk segments in %.3g s, %d are needed): run it while the VM receives", bulk.Segments, s.Seconds, minSegments)
		if s.Kind == Uplink {
			r.Verdict.Text = strings.Replace(r.Verdict.Text, "the VM receives", "something comes in", 1)
		}
		return
	}
	if s.Kind == Uplink {
		r.judgeUplink(s, v)
		return
	}
	if s.refused() {
		why := "its TCP receive offloads are off; in a Linux guest 'ethtool -K DEV rx-gro-hw on' switches them on"
		if s.NoVnetHdr {
			why = "its tap has no virtio-net header; QEMU's vnet_hdr=on gives it one"
		}
		v(Refused, "this VM takes no large frames, from the kernel or from rscctl: %s", why)
		return
	}
	// What rscctl makes is at most what the kernel's own limit for a frame, 64 KiB, holds.
	then := max(now, min(r.SegmentsPerTrain, gainPoints[len(gainPoints)-1].segments))
	e := Estimate(now, then)
	r.Saving = &e
	switch {
	case e.GuestGRO < minSaving && now >= mergedFrom:
		v(Merged, "the kernel's GRO merges for this VM already (%s): rscctl would add nothing but the switch and the account", perFrame(now))
	case e.GuestGRO < minSaving:
		v(Apart, "%s, and their senders leave little to merge: rscctl would save next to nothing", arrival(now))
	case 8*float64(bulk.Bytes)/s.Seconds < minBitsPerSec:
		v(Slow, "%s, but at %.2g Mbit/s of bulk TCP there is little to save", arrival(now), 8e-6*float64(bulk.Bytes)/s.Seconds)
	case now < singleBelow:
		v(Single, "frames arrive one by one: merging would save the guest about %.0f %% of its receive CPU%s", 100*e.GuestGRO, s.groFirst())
	default:
		v(Partly, "the kernel merges a part (%s): merging more would save the guest about %.0f %% of its receive CPU%s", perFrame(now), 100*e.GuestGRO, s.groFirst())
	}
}

func (r *Interface) judgeUplink(s *Sample, v func(Code, string, ...any)) {
	switch now := r.SegmentsPerFrame; {
	case now >= mergedFrom:
		v(Merged, "the kernel's GRO merges what comes in here (%s)", perFrame(now))
	case now >= singleBelow:
		v(Partly, "the kernel's GRO merges a part of what comes in here (%s)%s", perFrame(now), s.groFirst())
	case len(s.GROOff) > 0:
		v(Single, "frames come in one by one%s", s.groFirst())
	default:
		v(Single, "frames come in one by one, though GRO is on: a program of XDP in generic mode ends it, and some drivers have none")
	}
}

// refused says whether most of the bulk is of a family that the VM does not take in large frames.
func (s *Sample) refused() bool {
	var taken, not uint64
	for i, whole := range [...]bool{s.Takes.IPv4, s.Takes.IPv6} {
		for _, n := range s.Counts.TCP[i].BulkSegments {
			if whole {
				taken += n
			} else {
				not += n
			}
		}
	}
	return not > taken
}

// groFirst names what the operator should try before he installs anything.
func (s *Sample) groFirst() string {
	if len(s.GROOff) == 0 {
		return ""
	}
	return fmt.Sprintf("; GRO is off on %s: try 'ethtool -K %s gro on' first", strings.Join(s.GROOff, " and "), s.GROOff[0])
}

func perFrame(segments float64) string {
	switch {
	case segments == 0:
		return "no bulk TCP yet"
	case segments < 1.05:
		return "1 segment a frame"
	case segments < 9.95:
		return fmt.Sprintf("%.1f segments a frame", segments)
	}
	return fmt.Sprintf("%.0f segments a frame", segments)
}

func arrival(segments float64) string {
	if segments < singleBelow {
		return "frames arrive one by one"
	}
	return "frames arrive merged in part (" + perFrame(segments) + ")"
}
