package observe_test

import (
	"testing"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
)

// A controller lets the observer be by its name, which netdev cannot take from the package that loads the program.
func TestTheObserverGoesByOneName(t *testing.T) {
	if netdev.ObserverName != bpf.ObserverProgramName {
		t.Errorf("netdev passes over %q, and the program is called %q", netdev.ObserverName, bpf.ObserverProgramName)
	}
}
