package vhost_test

import (
	"bytes"
	"slices"
	"testing"
)

// Whoever copies hears of each payload behind the first while the one before it is copied, in order, also where a payload crosses buffers.
func TestWhoCopiesHearsOfTheNextPayload(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	load := newRxLoad(t, g, 1536)
	f := superframe(5)
	f.Frags = append([][]byte{f.Frags[0][:66], f.Frags[0][66:]}, f.Frags[1:]...)
	f.Sums = slices.Repeat([]uint16{0xffff}, len(f.Frags)-1)
	var ahead [][]byte
	f.Copy = func(dst, src []byte, initial uint32) uint16 {
		copy(dst, src)
		return uint16(initial) // as if all payloads summed up to 0: a piece adds nothing, and 0xffff stays what it is
	}
	f.Ahead = func(b []byte) { ahead = append(ahead, b) }
	q := p.RX(0)
	if !q.Begin() {
		t.Fatal("not running")
	}
	if err := q.Put(f); err != nil {
		t.Fatal(err)
	}
	if err := q.Commit(); err != nil {
		t.Fatal(err)
	}
	load.repost(t)
	if len(ahead) != len(f.Frags)-2 {
		t.Fatalf("told of %d payloads of %d", len(ahead), len(f.Frags)-1)
	}
	for i, b := range ahead {
		if !bytes.Equal(b, f.Frags[i+2]) {
			t.Errorf("payload %d was told as another one", i+1)
		}
	}
}
