package observe

import "github.com/rscctl/rscctl/bpf"

// Schema is the version of Report as JSON.
const Schema = 1

// Kind says what an interface is to a VM.
type Kind string

// The kinds.
const (
	Tap    Kind = "tap"    // a VM's own: what the host transmits is what the VM gets
	Uplink Kind = "uplink" // anything else: what it receives, before a bridge hands it on
)

// Report is what one run saw.
type Report struct {
	Schema     int         `json:"schema"`
	Seconds    float64     `json:"seconds"` // counted for so long
	Interfaces []Interface `json:"interfaces"`
}

// Interface is what was seen at one interface. Means are over bulk TCP: frames of several segments, or of one with at least 1,000
// bytes of payload.
type Interface struct {
	Name             string   `json:"iface"`
	Kind             Kind     `json:"kind"`
	Bridge           string   `json:"bridge,omitempty"`
	BitsPerSec       float64  `json:"bits_per_sec"` // all frames, from Ethernet on
	FramesPerSec     float64  `json:"frames_per_sec"`
	SegmentsPerFrame float64  `json:"segments_per_frame"` // 0: no bulk TCP
	BytesPerFrame    float64  `json:"bytes_per_frame"`    // of TCP payload
	Share22          float64  `json:"share_22"`           // of bulk bytes, those in frames of 22 segments and more: 0 to 1
	SegmentsPerTrain float64  `json:"segments_per_train"` // what could have been one frame
	DataFrames       uint64   `json:"data_frames"`        // of TCP, with payload
	EmptyFrames      uint64   `json:"empty_frames"`       // of TCP, without
	OtherFrames      uint64   `json:"other_frames"`
	Bulk             []Size   `json:"bulk"`
	Takes            *Takes   `json:"takes_large_frames,omitempty"` // a tap's
	Dropped          uint64   `json:"dropped,omitempty"`            // by a tap whose queue was full
	Saving           *Saving  `json:"saving,omitempty"`             // a tap's, where there was enough to judge
	Verdict          *Verdict `json:"verdict,omitempty"`
	Error            string   `json:"error,omitempty"` // why nothing could be counted here
}

// Takes says which frames of several segments the VM's driver takes whole.
type Takes struct {
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
}

// Size is one class of bulk frames by their segments.
type Size struct {
	From     int    `json:"from"`         // segments at least
	To       int    `json:"to,omitempty"` // and at most; 0: no bound
	Frames   uint64 `json:"frames"`
	Segments uint64 `json:"segments"`
	Bytes    uint64 `json:"bytes"` // of TCP payload
}

// sizes are the classes that the BPF program tells apart.
var sizes = [bpf.NumSegmentBins]Size{{From: 1, To: 1}, {From: 2, To: 9}, {From: 10, To: 21}, {From: 22, To: 44}, {From: 45}}

// large is the first class that counts for Share22.
const large = 3

// Sample is what Judge needs to know of one interface.
type Sample struct {
	Name    string
	Kind    Kind
	Bridge  string
	Seconds float64 // counted for so long, above 0
	Counts  bpf.Observed
	// The rest is a tap's, as it was at the end.
	Takes       Takes  // what it takes whole; what not is cut behind the place where it was counted
	NoVnetHdr   bool   // it cannot take any
	NoReader    bool   // no VM has it open
	Served      bool   // a controller has the VM attached
	DeviceBytes uint64 // that the VM took, as the tap itself says
	Dropped     uint64 // frames
	// Interfaces whose GRO is off: this one, or for a tap the uplinks of its bridge.
	GROOff []string
}

// Judge makes the report of one interface.
func Judge(s Sample) Interface {
	r := Interface{Name: s.Name, Kind: s.Kind, Bridge: s.Bridge, OtherFrames: s.Counts.OtherFrames, Dropped: s.Dropped, Bulk: append([]Size(nil), sizes[:]...)}
	takes := [2]bool{true, true}
	if s.Kind == Tap {
		t := s.Takes
		r.Takes, takes = &t, [2]bool{t.IPv4, t.IPv6}
	}
	bytes := s.Counts.OtherBytes
	frames := s.Counts.OtherFrames
	var trains uint64
	for i := range s.Counts.TCP {
		c := &s.Counts.TCP[i]
		data := c.DataFrames
		if !takes[i] {
			data = c.Segments
		}
		r.DataFrames += data
		r.EmptyFrames += c.Frames - c.DataFrames
		frames += data + c.Frames - c.DataFrames
		bytes += c.Bytes
		trains += c.BulkTrains
		r.addBulk(c, takes[i])
	}
	r.BitsPerSec, r.FramesPerSec = 8*float64(bytes)/s.Seconds, float64(frames)/s.Seconds
	bulk, inLarge := r.bulk()
	if bulk.Frames > 0 {
		r.SegmentsPerFrame = float64(bulk.Segments) / float64(bulk.Frames)
		r.BytesPerFrame = float64(bulk.Bytes) / float64(bulk.Frames)
		r.Share22 = float64(inLarge) / float64(bulk.Bytes)
		r.SegmentsPerTrain = float64(bulk.Segments) / float64(max(1, trains))
	}
	r.judge(&s, bytes)
	return r
}

// addBulk adds the bulk of one address family, as it was delivered: frames that the tap does not take whole come as their segments.
func (r *Interface) addBulk(c *bpf.ObservedTCP, whole bool) {
	for n := range c.BulkFrames {
		to, frames := &r.Bulk[n], c.BulkFrames[n]
		if !whole {
			to, frames = &r.Bulk[0], c.BulkSegments[n]
		}
		to.Frames += frames
		to.Segments += c.BulkSegments[n]
		to.Bytes += c.BulkBytes[n]
	}
}

// bulk sums the classes, and the bytes of those that count as large.
func (r *Interface) bulk() (all Size, inLarge uint64) {
	for n, b := range r.Bulk {
		all.Frames += b.Frames
		all.Segments += b.Segments
		all.Bytes += b.Bytes
		if n >= large {
			inLarge += b.Bytes
		}
	}
	return all, inLarge
}
