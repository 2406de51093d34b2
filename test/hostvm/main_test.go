package main

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/test/vm"
)

func TestOptionsOfAVMThatCountsInstructions(t *testing.T) {
	for _, c := range []struct {
		cpus  int
		count bool
		want  int
		err   error
	}{
		{0, false, 2, nil},
		{4, false, 4, nil},
		{0, true, 1, nil},
		{1, true, 1, nil},
		{2, true, 0, errCounted},
	} {
		s := settings{vm: vm.Options{CPUs: c.cpus, Count: c.count}}
		if err := s.processors(); !errors.Is(err, c.err) || err == nil && s.vm.CPUs != c.want {
			t.Errorf("-cpus %d, -count %v: %d processors and %v, want %d and %v", c.cpus, c.count, s.vm.CPUs, err, c.want, c.err)
		}
	}
}
