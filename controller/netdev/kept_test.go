package netdev_test

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// What is kept answers again and again by the same sockets, also that there is no such interface; of sockets that fail, the next
// question knows nothing.
func TestKeptSocketsAreOpenedAnewBehindAnError(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	n.B.Do(t, func() error {
		var k netdev.Kept
		defer k.Close()
		first, err := k.Handle()
		if err != nil {
			return err
		}
		for range 3 {
			if f, err := k.InspectIndex(n.B.Index); err != nil || f.Name != n.B.Dev {
				t.Fatalf("%+v, %v", f, err)
			}
			if _, err := k.InspectIndex(1 << 20); !errors.Is(err, netdev.ErrNoDevice) {
				t.Fatal(err)
			}
			if b, err := k.BondOf(n.B.Index); b != nil || err != nil {
				t.Fatalf("%+v, %v", b, err)
			}
		}
		if again, _ := k.Handle(); again != first {
			t.Error("they are not kept")
		}
		if err := first.Break(); err != nil {
			return err
		}
		if _, err := k.BondOf(n.B.Index); err == nil || errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("by a socket that is broken: %v", err)
		}
		if _, err := k.BondOf(n.B.Index); err != nil {
			t.Errorf("after it: %v", err)
		}
		return nil
	})
}
