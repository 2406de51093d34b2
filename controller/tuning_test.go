package controller

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// --cpus takes what taskset takes, and names what it does not take.
func TestCPUsAreReadAsTasksetReadsThem(t *testing.T) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	first := 0
	for !allowed.IsSet(first) {
		first++
	}
	one := fmt.Sprint(first)
	for _, list := range []string{one, one + "," + one, one + "-" + one} {
		if got, err := ParseCPUs(list); err != nil || !slices.Equal(got, []int{first}) {
			t.Errorf("%s: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{"", ",", "a", "-1", one + "-", one + ",", "3-1", "1023", "4095", "99999999999999999999", one + "-4095", "0x0", " " + one} {
		if got, err := ParseCPUs(list); !errors.Is(err, ErrCPUs) && !errors.Is(err, ErrCPU) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
}

// Each worker has a CPU of its own as long as there are enough, also after others have gone.
func TestWorkersAreSpreadOverTheirCPUs(t *testing.T) {
	p := newPlacement([]int{2, 5, 7})
	var got []int
	for range 4 {
		got = append(got, p.take()...)
	}
	if !slices.Equal(got, []int{2, 5, 7, 2}) {
		t.Fatalf("workers on %v", got)
	}
	p.give([]int{5})
	p.give([]int{2})
	if got := p.take(); !slices.Equal(got, []int{5}) {
		t.Errorf("the next on %v, the idle one is 5", got)
	}
	var none placement
	none.give(none.take())
}
