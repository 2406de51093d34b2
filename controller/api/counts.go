package api

import (
	"cmp"
	"slices"
)

// Count is one entry of a map of counters, such as VMStats.Passed.
type Count struct {
	Name string
	N    uint64
}

// ByCount sorts counters by count, largest first, then by name; zeros are left out.
func ByCount(m map[string]uint64) (out []Count) {
	for name, n := range m {
		if n > 0 {
			out = append(out, Count{name, n})
		}
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Name, b.Name)) })
	return out
}
