package observe

// The model of what merging saves a guest. What receiving a GB costs a guest falls with the segments in a frame, because most of the
// cost is paid per frame. Two figures make it (docs/observe.md says where they come from): how much a guest's CPU per GB falls in
// all, and which part of that frames of a given size bring.

// CPU per GB of a guest that gets every segment alone, over that of one that gets them merged: at least.
const (
	gainGuestGRO   = 1.7 // the guest's own GRO on, as it is unless somebody switched it off: it has merged a part already
	gainNoGuestGRO = 2.4 // the guest's own GRO off
)

// gainPoints are which part of the gain frames of so many segments bring.
var gainPoints = [...]struct{ segments, part float64 }{{1, 0}, {10, 0.85}, {22, 0.91}, {45, 0.94}}

// gainPart returns which part of the whole gain frames of so many segments bring, 0 to 1. Between the measured points it is linear in
// frames per segment: the cost per frame is spread over its segments. Above the last one it stays, for want of a measurement.
func gainPart(segments float64) float64 {
	last := gainPoints[0]
	for _, p := range gainPoints[1:] {
		if segments < p.segments {
			way := (1/last.segments - 1/max(segments, 1)) / (1/last.segments - 1/p.segments)
			return last.part + way*(p.part-last.part)
		}
		last = p
	}
	return last.part
}

// saving is the part of its receive CPU that a guest saves when its frames grow from now to then segments, 0 to 1.
func saving(now, then, gain float64) float64 {
	cost := func(segments float64) float64 { return 1 - (1-1/gain)*gainPart(segments) }
	return max(0, 1-cost(then)/cost(now))
}

// Saving is what a guest would save of the CPU that it spends on receiving, 0 to 1.
type Saving struct {
	GuestGRO   float64 `json:"guest_gro_on"` // with the guest's own GRO on, which is what people run
	NoGuestGRO float64 `json:"guest_gro_off"`
}

// Estimate returns the saving when frames of bulk TCP grow from now to then segments on average. Anything below one segment counts as one.
func Estimate(now, then float64) Saving {
	return Saving{GuestGRO: saving(now, then, gainGuestGRO), NoGuestGRO: saving(now, then, gainNoGuestGRO)}
}
