package controller

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// Whatever the order in which the maps are read, and however many flows a key finds equal, a list of flows is the same each time.
func TestFlowsHaveOneOrder(t *testing.T) {
	for key, order := range flowOrders {
		var want []api.Flow
		for _, vm := range []string{"a", "b"} {
			for _, dir := range []api.Direction{api.ToGuest, api.ToWire} {
				for _, src := range []string{"10.0.0.1", "10.0.0.2"} {
					for port := range uint16(3) {
						want = append(want, api.Flow{VM: vm, Iface: "eth0", Direction: dir, Src: src, SrcPort: 80, Dst: "10.0.0.9", DstPort: port})
					}
				}
			}
		}
		got := slices.Clone(want)
		rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		sortFlows(got, order)
		if !slices.EqualFunc(got, want, func(a, b api.Flow) bool { return byName(a, b) == 0 }) {
			t.Errorf("by %s: %v", key, got)
		}
	}
}
