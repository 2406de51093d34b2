package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/test/netnstest"
)

// One wire serves each way in turn, and goes home without what one of them has set.
func TestOneWireServesEveryWay(t *testing.T) {
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
	const kept = "12345"
	home := netnstest.Namespace(t)
	in := func(do func() error) {
		t.Helper()
		if err := home.Do(do); err != nil {
			t.Fatal(err)
		}
	}
	in(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "end0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "end1"})
	})
	flush := func(set string) (now string) {
		in(func() error {
			sys := t.TempDir()
			if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
				return err
			}
			defer func() { _ = unix.Unmount(sys, 0) }()
			path := filepath.Join(sys, "class/net/end1/gro_flush_timeout")
			if set != "" {
				return os.WriteFile(path, []byte(set), 0)
			}
			b, err := os.ReadFile(path)
			now = strings.TrimSpace(string(b))
			return err
		})
		return now
	}
	flush(kept)
	b, err := newBench(t.Context(), options{wire: "end0,end1", rows: regexp.MustCompile("."), round: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer b.closeStages()
	for _, w := range []way{ours, kernelTuned, ours} {
		in(func() error {
			_, err := b.stage(w)
			return err
		})
		v, err := b.stream(b.stages[w], planned{way: w, set: demo.Setting{Coalesce: true}})
		if err != nil || v["gbps"] <= 0 || len(b.stages) != 1 {
			t.Errorf("%s: %v, %v; %d stages have the wire", w.name, v, err, len(b.stages))
		}
	}
	if err := b.closeStages(); err != nil {
		t.Fatal(err)
	}
	if now := flush(""); now != kept {
		t.Errorf("gro_flush_timeout %s, and was %s", now, kept)
	}
}

func TestAWireIsTwoDevicesAndForRows(t *testing.T) {
	for _, o := range []options{{wire: "eth0", rows: regexp.MustCompile(".")}, {wire: "eth0,eth1"}, {wire: "eth0,eth1", all: true}} {
		if _, err := newBench(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "-wire "+o.wire) || (o.rows == nil) != errors.Is(err, errWire) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
