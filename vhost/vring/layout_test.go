package vring

import "testing"

// A ring of the legacy interface is known by its offsets, as QEMU computes them of the driver's page number; rings of today's drivers, which
// Offsets has, are none.
func TestRingsOfTheLegacyInterfaceAreKnown(t *testing.T) {
	for num := 1; num <= MaxSize; num *= 2 {
		avail, used := Offsets(num)
		for _, page := range []int{4096, 16384, 65536} {
			legacy := (avail + 4 + 2*num + page - 1) / page * page
			if !IsLegacy(num, uint64(avail), uint64(legacy)) {
				t.Errorf("%d descriptors, pages of %d: not known", num, page)
			}
			if IsLegacy(num, uint64(avail)+4096, uint64(legacy)) || IsLegacy(num, uint64(avail), uint64(legacy)+64) {
				t.Errorf("%d descriptors: known elsewhere", num)
			}
		}
		if IsLegacy(num, uint64(avail), uint64(used)) {
			t.Errorf("%d descriptors: today's layout is taken for the legacy one", num)
		}
	}
}
