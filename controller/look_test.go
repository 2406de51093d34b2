package controller

import (
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
)

// The looks ask the kernel for all VMs through one set of sockets, opened for the first that asks and kept for the next look: neither a
// hundred VMs nor a hundred looks open a hundred. After an answer that may be the sockets' fault they are opened anew.
func TestLooksHaveOneSetOfSockets(t *testing.T) {
	c := &Controller{rules: netdev.NewRuleReader()}
	open := func() int { return inUse(t).descriptors }
	before := open()
	asked := func(doubt bool) (h *netdev.Handle) {
		t.Helper()
		c.lookAt(func(l *look) {
			for range 100 {
				again, err := l.handle()
				if err != nil || h != nil && again != h {
					t.Fatalf("another one: %v", err)
				}
				h = again
			}
			if doubt {
				l.doubt()
			}
		})
		return h
	}
	c.lookAt(func(*look) {})
	if n := open(); n != before {
		t.Errorf("%d descriptors before anybody asked", n-before)
	}
	first := asked(false)
	one := open()
	for range 100 {
		if asked(false) != first {
			t.Fatal("another look has other sockets")
		}
	}
	if n := open(); n != one || n == before {
		t.Errorf("%d descriptors for one, %d for a hundred", one-before, n-before)
	}
	if asked(true); open() != before {
		t.Errorf("%d descriptors stay behind a look that was in doubt", open()-before)
	}
	if again := asked(false); again == first || open() != one {
		t.Errorf("after it the same ones, or %d descriptors, want %d", open()-before, one-before)
	}
	if err := c.host.Close(); err != nil || open() != before {
		t.Errorf("closed: %v, %d descriptors stay", err, open()-before)
	}
}
