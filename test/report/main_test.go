package main

import (
	"testing"

	"github.com/rscctl/rscctl/test/netns"
)

func TestASkipIsAHoleUnlessTheTestRanOrIsAllowed(t *testing.T) {
	r := totals{ran: map[string]bool{"pkg TestElsewhere": true}, inVM: map[string]bool{"pkg TestInVM": true}}
	for _, c := range []struct {
		name string
		s    skip
		hole bool
	}{
		{"ran in another stage", skip{"race", "pkg TestElsewhere", "x_test.go:3: the race detector allocates"}, false},
		{"ran nowhere", skip{"race", "pkg TestNowhere", "x_test.go:3: the race detector allocates"}, true},
		{"says why it may", skip{"unit", "pkg TestNowhere", "x_test.go:3: allowed: takes minutes"}, false},
		{"says it in the middle only", skip{"unit", "pkg TestNowhere", "x_test.go:3: not allowed: no root"}, true},
		{"left to the VM, where it passed", skip{"unit", "pkg TestInVM", "x_test.go:3: " + netnstest.ToVM + "a bridge"}, false},
		{"left to the VM, where it did not", skip{"unit", "pkg TestNowhere", "x_test.go:3: " + netnstest.ToVM + "a bridge"}, true},
		{"a whole package", skip{"unit", "./pkg", "allowed: reboot"}, false},
		{"no reason", skip{"unit", "pkg TestNowhere", "no reason given"}, true},
	} {
		if got := r.hole(c.s); got != c.hole {
			t.Errorf("%s: hole = %t", c.name, got)
		}
	}
}
