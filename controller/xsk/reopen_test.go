package xsk

import (
	"fmt"
	"os"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestReopeningLeaksNothing(t *testing.T) {
	modes(t, func(t *testing.T, native bool) {
		r := newRig(t, 1, native, netnstest.Options{})
		r.socks[0].Close()
		before := openFDs(t)
		r.net.B.Do(t, func() error {
			for i := range 100 {
				s, err := Open(r.config(0, native))
				if err != nil {
					return fmt.Errorf("time %d: %w", i, err)
				}
				s.Refill()
				if err := s.Close(); err != nil {
					return err
				}
			}
			return nil
		})
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}
