package netdev_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Filter rules made without their tools, which the test machines need not have.

// nft makes a table with one base chain in the calling thread's namespace, with one rule that matches everything and does
// nothing, or none. dev is for chains of one interface.
type nft struct {
	family byte
	hook   uint32
	dev    string
	rules  int
	drop   bool
	flags  uint32 // of the table
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func (n nft) add(t *testing.T) {
	t.Helper()
	const (
		newTable, newChain, newRule = 0, 3, 6
		begin, end                  = 0x10, 0x11 // NFNL_MSG_BATCH_BEGIN, _END
	)
	text := nl.ZeroTerminated
	msg := func(kind, flags int, family byte, res uint16, attrs ...*nl.RtAttr) []byte {
		r := nl.NewNetlinkRequest(kind, flags)
		r.AddData(&nl.Nfgenmsg{NfgenFamily: family, ResId: res})
		for _, a := range attrs {
			r.AddData(a)
		}
		return r.Serialize()
	}
	make := func(what, flags int, attrs ...*nl.RtAttr) []byte {
		return msg(unix.NFNL_SUBSYS_NFTABLES<<8|what, flags|unix.NLM_F_CREATE|unix.NLM_F_ACK, n.family, 0, attrs...)
	}
	subsys := nl.Swap16(unix.NFNL_SUBSYS_NFTABLES)
	hook := nl.NewRtAttr(4|unix.NLA_F_NESTED, nil)
	hook.AddRtAttr(1, be32(n.hook))
	hook.AddRtAttr(2, be32(0))
	chain := []*nl.RtAttr{nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(3, text("somechain")), hook, nl.NewRtAttr(7, text("filter"))}
	if n.dev != "" {
		hook.AddRtAttr(3, text(n.dev))
	}
	if n.drop {
		chain = append(chain, nl.NewRtAttr(5, be32(0)))
	}
	batch := slices.Concat(msg(begin, 0, 0, subsys),
		make(newTable, 0, nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(2, be32(n.flags))),
		make(newChain, 0, chain...))
	for range n.rules {
		batch = append(batch, make(newRule, unix.NLM_F_APPEND, nl.NewRtAttr(1, text("sometable")), nl.NewRtAttr(2, text("somechain")))...)
	}
	batch = append(batch, msg(end, 0, 0, subsys)...)
	acks := 2 + n.rules

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		netnstest.SkipToVM(t, "netfilter over netlink: "+err.Error())
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	buf := [1 << 16]byte{}
	for acks > 0 {
		got, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:got]; len(b) >= 20; b = b[(binary.NativeEndian.Uint32(b)+3)&^3:] {
			acks--
			if errno := -int32(binary.NativeEndian.Uint32(b[16:])); errno != 0 {
				if errno == int32(unix.EOPNOTSUPP) || errno == int32(unix.EINVAL) && acks == 1+n.rules {
					netnstest.SkipToVM(t, "nf_tables with this family and hook: "+unix.Errno(errno).Error())
				}
				t.Fatalf("nf_tables: %v", unix.Errno(errno))
			}
		}
	}
}

// legacyRule writes the table filter of iptables as its tool would: empty chains INPUT, FORWARD and OUTPUT that accept,
// with or without one rule in FORWARD (linux/netfilter_ipv4/ip_tables.h).
func legacyRule(t *testing.T, rule bool) {
	t.Helper()
	const standard, final = 112 + 40, 112 + 64
	entry := func(size int, name string) []byte {
		e := make([]byte, size)
		binary.NativeEndian.PutUint16(e[88:], 112) // target_offset
		binary.NativeEndian.PutUint16(e[90:], uint16(size))
		binary.NativeEndian.PutUint16(e[112:], uint16(size-112))
		copy(e[114:], name)
		if size == standard {
			binary.NativeEndian.PutUint32(e[144:], 0xfffffffe) // -NF_ACCEPT - 1
		} else {
			copy(e[144:], name)
		}
		return e
	}
	accept, extra := entry(standard, ""), uint32(0)
	entries := slices.Clone(accept)
	if rule {
		entries, extra = append(entries, accept...), standard
	}
	entries = slices.Concat(entries, accept, accept, entry(final, "ERROR"))
	r := make([]byte, 96)
	copy(r, "filter")
	for at, v := range map[int]uint32{
		32: 1<<1 | 1<<2 | 1<<3, 36: 4 + extra/standard, 40: uint32(len(entries)),
		44 + 2*4: standard, 44 + 3*4: 2*standard + extra, // where the chains begin
		64 + 2*4: standard + extra, 64 + 3*4: 2*standard + extra, // and their policies are
		84: 4, // entries before
	} {
		binary.NativeEndian.PutUint32(r[at:], v)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const replace = 64 // IPT_SO_SET_REPLACE
	if err := unix.SetsockoptString(fd, unix.SOL_IP, replace, string(append(r, entries...))); err != nil {
		netnstest.SkipToVM(t, "legacy iptables: "+err.Error())
	}
}
