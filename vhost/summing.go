package vhost

import "github.com/rscctl/rscctl/vhost/virtio"

// summing copies a frame and verifies it in the same pass.
type summing struct {
	sums []uint16
	copy virtio.Copier
}

// scatter is the function scatter, and reports whether every fragment behind the first is what its sum says.
func (s *summing) scatter(segs [][]byte, hdr []byte, payload [][]byte) bool {
	segs = write(write(segs, hdr), payload[0])
	return s.copy(segs, payload[1:], s.sums)
}

// write copies src to the beginning of segs, and returns what is left of them: the first of them is cut.
func write(segs [][]byte, src []byte) [][]byte {
	for len(src) > 0 {
		if len(segs[0]) == 0 {
			segs = segs[1:]
			continue
		}
		n := copy(segs[0], src)
		segs[0], src = segs[0][n:], src[n:]
	}
	return segs
}
