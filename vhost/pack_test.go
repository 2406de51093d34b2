package vhost_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// config is what newPort made a port of.
func packConfig(socket string, log *portLog) vhost.Config {
	return vhost.Config{
		Name: "vm", Socket: socket, UID: -1, GID: -1, MaxPairs: 4, Logf: log.logf,
		Hooks: vhost.Hooks{
			Started:    func(*vhost.Port) { log.add("started") },
			BeforeStop: func(*vhost.Port) { log.add("before stop") },
			Stopped: func(_ *vhost.Port, reason error) {
				log.add("stopped")
				log.stopped <- reason
			},
		},
	}
}

// handOver packs p and unpacks it, by way of JSON.
func handOver(t testing.TB, p *vhost.Port, cfg vhost.Config) *vhost.Port {
	t.Helper()
	st, files, err := p.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = vhost.ReadPortState(b); err != nil {
		t.Fatal(err)
	}
	q, err := vhost.Unpack(cfg, st, files)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func TestAPortIsPackedAndUnpacked(t *testing.T) {
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	before := len(openFDs(t))
	for i := range 50 {
		g.send(g.TX(0), virtio.NetHdr{}, makeFrame(100+i, byte(i))) // waits in the ring meanwhile
		g.kick(g.TX(0))
		p = handOver(t, p, packConfig(socket, log))
		got := poll(t, p.TX(0), 64)
		if len(got) != 1 || !bytes.Equal(got[0], makeFrame(100+i, byte(i))) {
			t.Fatalf("round %d: %d frames", i, len(got))
		}
		exchange(t, p, g, 0)
		if err := g.SetCall(g.RX(0), true); err != nil { // the front-end talks to the new one
			t.Fatal(err)
		}
	}
	waitFor(t, "as many descriptors as before", func() bool { return len(openFDs(t)) <= before })
	if s := p.State(); s.Connections != 1 || s.Name != vhost.StateRunning {
		t.Errorf("state %+v", s)
	}
}
