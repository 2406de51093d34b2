package systemd

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// Addresses on the wire of up0 and in the guest behind it.
const (
	wireAddr  = "10.9.0.1/24"
	guestAddr = "10.9.0.2/24"
	piece     = 1 << 20 // bytes of one transfer: a second or two in emulation
)

// guest is a VM on vhost-user: a front-end with a Linux stack behind it, in a namespace of its own.
type guest struct {
	*stackguest.Guest
	side *netnstest.Side
}

// boots starts the guest of a socket. It lives as long as the whole test.
func (h *host) boots(whole *testing.T, socket, mac string) *guest {
	h.t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		h.t.Fatal(err)
	}
	g := &guest{side: &netnstest.Side{NS: netnstest.Namespace(whole), Dev: "eth0", MAC: hw, IPv4: netip.MustParsePrefix(guestAddr)}}
	err = g.side.NS.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var err error
		if g.Guest, err = stackguest.Open(ctx, stackguest.Config{Socket: socket, Tap: g.side.Dev, MAC: hw}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(g.side.Dev)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(guestAddr)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	if err == nil {
		err = g.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	whole.Cleanup(func() { g.Close() })
	h.must("ip addr replace " + wireAddr + " dev wire0")
	h.eventually("the guest is reached", func() error { return g.transfer(1 << 10) })
	return g
}

// transfer sends n bytes from the wire into the guest, which has to get the same.
func (g *guest) transfer(n int64) error {
	var ln net.Listener
	err := g.side.NS.Do(func() (err error) {
		ln, err = net.Listen("tcp", g.side.IPv4.Addr().String()+":0")
		return err
	})
	if err != nil {
		return err
	}
	defer ln.Close()
	got := make(chan []byte, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			close(got)
			return
		}
		defer c.Close()
		sum := sha256.New()
		_, _ = io.Copy(sum, c)
		got <- sum.Sum(nil)
	}()
	c, err := net.DialTimeout("tcp", ln.Addr().String(), 30*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, sum), rand.NewChaCha8([32]byte{1}), n); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, c); err != nil { // until the guest has read all
		return err
	}
	if have := <-got; string(have) != string(sum.Sum(nil)) {
		return fmt.Errorf("%d bytes arrived as others", n)
	}
	return nil
}

// through has transfers go on while fn runs, and wants each whole and the front-end's connection the one that it was.
func (g *guest) through(h *host, fn func()) {
	h.t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	var whole atomic.Int32
	go func() {
		for n := 0; ; n++ {
			whole.Store(int32(n))
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := g.transfer(piece); err != nil {
				done <- fmt.Errorf("transfer %d: %w", n, err)
				return
			}
		}
	}()
	fn()
	close(stop)
	if err := <-done; err != nil {
		h.t.Errorf("%v\n%s", err, h.journal())
	}
	h.t.Logf("%d transfers meanwhile", whole.Load())
	select {
	case <-g.Done():
		h.t.Errorf("the front-end's connection ended: %v\n%s", g.Err(), h.journal())
	default:
	}
}
