package flowtable

// SizeBounds are the upper bounds of Stats.SizeHist in bytes; the last bucket has none.
var SizeBounds = [...]uint64{64, 128, 256, 512, 1024, 1514, 4096, 8192, 16384, 32768, 65535}

// HoldBounds are the upper bounds of Stats.HoldHist in ns; the last bucket has none.
var HoldBounds = [...]uint64{1e3, 2e3, 5e3, 10e3, 20e3, 50e3, 100e3, 200e3, 500e3, 1e6, 10e6}

// Stats are the counters of one port. Every packet is counted once: Packets = Merged + the sum of Passed + what is held.
//
// A packet counts as merged when it left in a frame made of more than one packet (absorbed window updates are packets), and
// as passed under the frame's reason when it left alone, were it never held or held in vain: a single segment whose time
// ran out is passed for reason deadline.
type Stats struct {
	Packets     uint64 // in
	Bytes       uint64 // in, Ethernet first
	Frames      uint64 // out
	FrameBytes  uint64 // out
	Superframes uint64 // out, of more than one packet
	Merged      uint64 // packets in those
	Updates     uint64 // of those, window updates absorbed

	MergedBytes uint64 // of Merged, as they came: Ethernet first, without padding

	Passed [NumReasons]uint64 // packets that left alone, by reason
	Sealed [NumReasons]uint64 // superframes, by the reason they left

	SizeHist [len(SizeBounds) + 1]uint64 // bytes of TCP frames out
	HoldHist [len(HoldBounds) + 1]uint64 // ns that the first packet of held frames waited
}

func bucketOf(bounds []uint64, v uint64) int {
	for i, b := range bounds {
		if v <= b {
			return i
		}
	}
	return len(bounds)
}

func (s *Stats) out(sf *Superframe, held bool) {
	s.Frames++
	s.FrameBytes += uint64(sf.Len)
	if n := len(sf.Refs); n > 1 {
		s.Superframes++
		s.Merged += uint64(n)
		s.Updates += uint64(n - sf.Segments)
		s.Sealed[sf.Reason]++
	} else {
		s.Passed[sf.Reason]++
	}
	if sf.TCP {
		s.SizeHist[bucketOf(SizeBounds[:], uint64(sf.Len))]++
	}
	if held {
		s.HoldHist[bucketOf(HoldBounds[:], uint64(sf.Held))]++
	}
}
