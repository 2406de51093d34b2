package vring_test

import (
	"testing"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// checkAddresses holds a chain to its promise: with a log, each writable piece has the guest address at which the table has the
// very same bytes; without one, there is no address.
func checkAddresses(t *testing.T, c *vring.Chain, table *guestmem.Table, logged bool) {
	t.Helper()
	want := len(c.Writable)
	if !logged {
		want = 0
	}
	if len(c.WritableGPA) != want {
		t.Fatalf("%d addresses of %d pieces, logged %v", len(c.WritableGPA), len(c.Writable), logged)
	}
	for i, gpa := range c.WritableGPA {
		p := c.Writable[i]
		if s, err := table.Slice(gpa, uint64(len(p))); err != nil || &s[0] != &p[0] {
			t.Fatalf("piece %d is not at %#x: %v", i, gpa, err)
		}
	}
}

// A page that the device wrote must be told to the destination of a migration, wherever the chain put it: behind readable
// buffers, in an indirect table, over the border of two regions, many in one chain.
func TestWritablePiecesKeepTheirGuestAddresses(t *testing.T) {
	for _, logged := range []bool{true, false} {
		f := virtio.Mask(virtio.FIndirectDesc)
		if logged {
			f |= virtio.Mask(virtio.FLogAll)
		}
		g := vringtest.New(vringtest.Options{Num: 8, Features: f, Data: 1000, Split: 100})
		buffer := func(at, n int, flags uint16, following uint16) vringtest.Desc {
			return vringtest.Desc{Addr: g.DataGPA + uint64(at), Len: uint32(n), Flags: flags, Next: following}
		}
		table := make([]byte, 48)
		buffer(90, 20, next, 1).Encode(table)
		buffer(480, 250, next|write, 2).Encode(table[16:])
		buffer(200, 100, write, 0).Encode(table[32:])
		g.Write(g.DataGPA+800, table)
		g.Set(0, buffer(0, 10, next, 1))
		g.Set(1, buffer(10, 10, next|write, 2))
		g.Set(2, buffer(150, 400, write, 0))
		g.Set(3, buffer(800, 48, indirect, 0))
		g.Set(4, buffer(0, 100, 0, 0))
		g.Set(5, buffer(99, 1, write, 0))
		d, err := g.Device()
		if err != nil {
			t.Fatal(err)
		}
		var c vring.Chain
		for _, want := range []struct {
			head             uint16
			readable, pieces int
		}{{0, 1, 6}, {3, 2, 5}, {4, 1, 0}, {5, 0, 1}} {
			g.Post(want.head)
			if ok, err := d.Next(&c); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if len(c.Readable) != want.readable || len(c.Writable) != want.pieces {
				t.Fatalf("chain %d: %d and %d pieces", want.head, len(c.Readable), len(c.Writable))
			}
			checkAddresses(t, &c, g.Table, logged)
		}
		if ok, err := d.Next(&c); ok || err != nil || len(c.WritableGPA) != 0 {
			t.Errorf("addresses without a chain: %v, %v, %d", ok, err, len(c.WritableGPA))
		}
	}
}
