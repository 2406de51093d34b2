package netdev_test

import (
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addVeth makes a veth pair in the calling thread's namespace.
func addVeth(name, peer string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := netlink.NewVeth(attrs)
	v.PeerName = peer
	return netlink.LinkAdd(v)
}

// hideName takes the name of a namespace away for the rest of the test; the namespace stays.
func hideName(t *testing.T, ns *netnstest.NS) {
	t.Helper()
	if err := unix.Unmount(ns.Path(), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
}
