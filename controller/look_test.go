package controller

import (
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
)

// A look asks the kernel for all VMs through one set of sockets, opened for the first that asks, and leaves none behind: a hundred
// VMs do not open a hundred a second.
func TestALookHasOneSetOfSocketsForAllVMs(t *testing.T) {
	c := &Controller{rules: netdev.NewRuleReader()}
	open := func() int { return inUse(t).descriptors }
	before := open()
	c.lookAt(func(l *look) {
		if n := open(); n != before {
			t.Errorf("%d descriptors before anybody asked", n-before)
		}
		first, err := l.handle()
		if err != nil {
			t.Fatal(err)
		}
		one := open()
		for range 100 {
			if again, err := l.handle(); err != nil || again != first {
				t.Fatalf("another one: %v", err)
			}
		}
		if n := open(); n != one || n == before {
			t.Errorf("%d descriptors for one, %d for a hundred", one-before, n-before)
		}
	})
	if n := open(); n != before {
		t.Errorf("%d descriptors stay", n-before)
	}
}
