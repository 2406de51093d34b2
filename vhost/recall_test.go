package vhost_test

import (
	"strings"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A front-end that has forgotten what its guest's driver negotiated, as QEMU before 8.0 does while nobody is connected, is not believed
// where the rings say otherwise: in the same process, over a hand-over, and after a crash in which the connection was lost. A driver that
// lays its rings out otherwise is another one, and the operator is told.
func TestAFrontEndThatForgetsItsDriverIsNotBelieved(t *testing.T) {
	forgetful := func(size int) func(*user.FrontendConfig) {
		return func(c *user.FrontendConfig) { c.Features, c.RingSize = 0, size }
	}
	for name, tt := range map[string]struct {
		between func(t *testing.T, p *vhost.Port, cfg vhost.Config) *vhost.Port
		size    int
		recalls bool
	}{
		"same process":        {size: 64, recalls: true},
		"over a hand-over":    {size: 64, recalls: true, between: func(t *testing.T, p *vhost.Port, cfg vhost.Config) *vhost.Port { return handOver(t, p, cfg) }},
		"another ring":        {size: 128},
		"another controller":  {size: 64, between: anew},
		"connection is lost":  {size: 64, recalls: true, between: losing},
		"lost, another shape": {size: 32, between: losing},
	} {
		t.Run(name, func(t *testing.T) {
			p, cfg, log := newHeritable(t, nil)
			g := newGuest(t, cfg.Socket, nil).start()
			exchange(t, p, g, 0)
			negotiated := g.Features()
			if name != "connection is lost" && name != "lost, another shape" {
				_ = g.Close()
				<-log.stopped
			}
			if tt.between != nil {
				p = tt.between(t, p, cfg)
			}
			_ = g.Close()
			waitFor(t, "the front-end is gone", func() bool { return p.State().PeerPID == 0 })
			newGuest(t, cfg.Socket, forgetful(tt.size)).start()
			waitFor(t, "the next connection runs", func() bool { return p.State().Pairs > 0 })
			s := p.State()
			if tt.recalls && (s.Features != negotiated || s.Warning != "") {
				t.Errorf("features %v, warning %q", s.Features.Names(), s.Warning)
			}
			if !tt.recalls && (s.Features.Has(virtio.FVersion1) || !strings.Contains(s.Warning, "restart the guest's driver")) {
				t.Errorf("features %v, warning %q", s.Features.Names(), s.Warning)
			}
		})
	}
}

// anew is a controller that knows nothing of the one before.
func anew(t *testing.T, p *vhost.Port, cfg vhost.Config) *vhost.Port {
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := vhost.NewPort(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.Close() })
	return next
}

// losing is a process that died when nobody could tell any more what the front-end believes, and its heir.
func losing(t *testing.T, p *vhost.Port, cfg vhost.Config) *vhost.Port {
	c := pack(t, p)
	c.state = append(c.state[:len(c.state)-1], `,"pending":"GET_VRING_BASE"}`...)
	heir, err := c.unpack(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = heir.Close() })
	return heir
}
