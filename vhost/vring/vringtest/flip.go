package vringtest

// Flip writes two descriptors in turn to b until stop is closed, as a hostile guest's other processor would. It is
// hidden from the race detector, since racing is its purpose.
//
//go:norace
func Flip(stop <-chan struct{}, b []byte, x, y Desc) {
	var first, second [16]byte
	x.Encode(first[:])
	y.Encode(second[:])
	for {
		select {
		case <-stop:
			return
		default:
		}
		for i := range 16 {
			b[i] = second[i]
		}
		for i := range 16 {
			b[i] = first[i]
		}
	}
}
