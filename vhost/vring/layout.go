package vring

// MaxSize is the largest ring in descriptors (section 2.7).
const MaxSize = 32768

// Bits of a descriptor's flags (section 2.7.5) and of avail.flags and used.flags (sections 2.7.7 and 2.7.10).
const (
	DescNext     = 1 // the chain goes on at next
	DescWrite    = 2 // device writes, else device reads
	DescIndirect = 4 // the buffer is a table of descriptors

	noInterrupt = 1 // avail.flags: the driver needs no call
	noNotify    = 1 // used.flags: the device needs no kick
)

const (
	descSize  = 16
	ringStart = 4 // avail.ring and used.ring begin behind flags and idx
	usedElem  = 8
	cacheLine = 64
)

// Layout is the memory of one ring. Num is its size in descriptors. The slices may be longer than the ring needs; what
// lies behind is not touched.
type Layout struct {
	Num               int
	Desc, Avail, Used []byte
}

// DescBytes is the size in bytes of the descriptor table of a ring of num descriptors.
func DescBytes(num int) int { return descSize * num }

// AvailBytes is the size in bytes of the avail ring, used_event included, which is there whether negotiated or not.
func AvailBytes(num int) int { return ringStart + 2*num + 2 }

// UsedBytes is the size in bytes of the used ring, avail_event included, which is there whether negotiated or not.
func UsedBytes(num int) int { return ringStart + usedElem*num + 2 }

// splitBytes are the three together.
func splitBytes(num int) (desc, avail, used int) {
	return DescBytes(num), AvailBytes(num), UsedBytes(num)
}

// Offsets says where avail and used begin when the three pieces are laid out behind each other, descriptors at 0. Used
// begins on a cache line of its own, because the other side writes there.
func Offsets(num int) (avail, used int) {
	avail = DescBytes(num)
	return avail, roundUp(avail+AvailBytes(num), cacheLine)
}

// Bytes is the memory in bytes that [Split] needs for a ring of num descriptors, a multiple of 64.
func Bytes(num int) int {
	_, used := Offsets(num)
	return roundUp(used+UsedBytes(num), cacheLine)
}

// IsLegacy says whether a split ring of num descriptors is laid out as the legacy interface has it: in one piece,
// the used ring on the next page (section 2.7.2). Offsets are in bytes from the descriptors. Pages have 4,096 bytes,
// or more where a guest on virtio-mmio says so.
func IsLegacy(num int, avail, used uint64) bool {
	end := DescBytes(num) + AvailBytes(num) - 2 // used_event came later and is not counted
	for page := 4096; page <= 1<<16; page *= 2 {
		if used == uint64(roundUp(end, page)) {
			return avail == uint64(DescBytes(num))
		}
	}
	return false
}

// Split lays a ring of num descriptors out at the front of mem as [Offsets] says. mem must be aligned to 16 bytes.
func Split(mem []byte, num int) (Layout, error) {
	if !validSize(num) {
		return Layout{}, ErrRingSize
	}
	if len(mem) < Bytes(num) {
		return Layout{}, ErrRingShort
	}
	avail, used := Offsets(num)
	l := Layout{
		Num:   num,
		Desc:  mem[:DescBytes(num):DescBytes(num)],
		Avail: mem[avail : avail+AvailBytes(num) : avail+AvailBytes(num)],
		Used:  mem[used : used+UsedBytes(num) : used+UsedBytes(num)],
	}
	return l, l.check()
}

// check validates sizes and alignment. The standard asks 16, 2 and 4 bytes of alignment (section 2.7); we ask 4 of
// avail, because its flags and idx are loaded as one atomic word. Every guest lays it out so: avail follows descriptors.
func (l *Layout) check() error {
	switch {
	case !littleEndian():
		return ErrByteOrder
	case !validSize(l.Num):
		return ErrRingSize
	case len(l.Desc) < DescBytes(l.Num), len(l.Avail) < AvailBytes(l.Num), len(l.Used) < UsedBytes(l.Num):
		return ErrRingShort
	case !aligned(l.Desc, 16), !aligned(l.Used, 4):
		return ErrAlign
	case !aligned(l.Avail, 4):
		return ErrAvailAlign
	}
	return nil
}

// validSize: a split ring has a power of two.
func validSize(num int) bool { return num > 0 && num <= MaxSize && num&(num-1) == 0 }

func roundUp(n, to int) int { return (n + to - 1) &^ (to - 1) }

// needEvent is the standard's vring_need_event (section 2.7.10.1): did idx move from old to now over event?
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }
