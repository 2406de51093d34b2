package netdev_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// The kernel's bond is what is read of it: its members and which of them is the backup, also after a fail-over; what is put on a member is on the
// path of a VM's frames; an announcement leaves by the active member, with the station's tag.
func TestARealBondIsReadAndAnnouncedBy(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	netnstest.Need(t, netnstest.Bonding, netnstest.Tool("tc"))
	b := n.B
	run := func(command string) { b.Output(t, "sh", "-ec", command) }
	run("ip link add bond0 type bond mode active-backup miimon 20 && ip link add spare type veth peer name other && ip link set other up")
	run(fmt.Sprintf("ip link set %s down && ip link set %s master bond0 && ip link set spare master bond0 && ip link set bond0 up", b.Dev, b.Dev))
	h := in(t, b)
	bond, err := h.Inspect("bond0")
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		t.Helper()
		now, err := h.BondOf(bond.Index)
		if err != nil || now == nil {
			t.Fatalf("%+v, %v", now, err)
		}
		out := now.Mode
		for _, m := range now.Members {
			out += fmt.Sprintf(" %s:%t:%t", m.Name, m.Link, m.Active)
		}
		return out
	}
	becomes := func(want string) {
		t.Helper()
		got := ""
		for end := time.Now().Add(netnstest.Patience(5 * time.Second)); time.Now().Before(end) && got != want; time.Sleep(10 * time.Millisecond) {
			got = state()
		}
		if got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	becomes(fmt.Sprintf("active-backup spare:true:false %s:true:true", b.Dev))
	if other, err := h.BondOf(b.Index); other != nil || err != nil {
		t.Errorf("a veth: %+v, %v", other, err)
	}
	if f, err := h.Inspect("spare"); err != nil || !f.Backup || f.Master != "bond0" {
		t.Errorf("%+v, %v", f, err)
	}
	if err := h.CheckUplink("bond0", 0); err != nil {
		t.Error(err)
	}
	if err := h.CheckUplink("spare", 7); !errors.Is(err, netdev.ErrNotUplink) || !strings.Contains(err.Error(), "'rscctl attach bond0'") {
		t.Errorf("a member: %v", err)
	}

	c := n.A.Capture(t)
	station := netdev.Station{MAC: [6]byte{0x52, 0x54, 0, 0, 0, 9}, VLAN: 7}
	b.Do(t, func() error { return netdev.Announce(bond.Index, []netdev.Station{station}) })
	f := c.Until(5*time.Second, func(f netnstest.Frame) bool { return len(f.Data) > 14 && f.Data[12] == 0x80 && f.Data[13] == 0x35 })
	if !f.Tagged || f.TCI != 7 || [6]byte(f.Data[6:]) != station.MAC || f.Data[0] != 0xff || f.Data[21] != 3 || [6]byte(f.Data[32:]) != station.MAC {
		t.Errorf("%+v", f)
	}

	run("ip link set other down")
	becomes(fmt.Sprintf("active-backup spare:false:false %s:true:true", b.Dev))
	run("ip link set other up && tc qdisc add dev spare clsact && tc filter add dev spare ingress protocol all u32 match u32 0 0 flowid 1:1")
	run("ip tuntap add tap9 mode tap && ip link add br9 type bridge && ip link set bond0 master br9 && ip link set tap9 master br9")
	tap, err := h.Inspect("tap9")
	if err != nil {
		t.Fatal(err)
	}
	b.Do(t, func() error {
		rules, err := netdev.NewRuleReader().Read()
		if err != nil {
			return err
		}
		ports, err := h.FindPorts(bond.Index, 0, tap.Index)
		if err != nil {
			return err
		}
		out, err := rules.Bypassed(h, bond.Index, tap.Index, ports)
		if !strings.Contains(strings.Join(out, "\n"), "TC ingress of spare") {
			t.Errorf("%q, %v", out, err)
		}
		return err
	})
}
