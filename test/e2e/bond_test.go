package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A bond's members are veths, whose other ends p0, p1, ... are ports of a switch (a bridge), or members of a bond face to face with it.

// bondRig is a rig whose uplink is bond0 of side B, with as many members eth0, eth1, ... as queues says, each with so many queues. peer are
// the words for `ip link add lan` of what the other ends are in.
func bondRig(t *testing.T, mode, peer string, queues ...int) *rig {
	t.Helper()
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.TAP, netnstest.Bonding)
	a := &netnstest.Side{NS: netnstest.Namespace(t), Dev: "lan", IPv4: netip.MustParsePrefix("10.77.0.1/24")}
	b := &netnstest.Side{NS: netnstest.Namespace(t), Dev: "bond0", IPv4: netip.MustParsePrefix("10.77.0.2/24")}
	r := &rig{t: t, dir: t.TempDir(), net: &netnstest.Network{A: a, B: b}}
	sh := func(s *netnstest.Side, command string, args ...any) {
		t.Helper()
		s.Output(t, "sh", "-ec", fmt.Sprintf(command, args...))
	}
	quiet := "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"
	sh(a, "%s; ip link add lan %s", quiet, peer)
	sh(b, "%s; ip link add bond0 type bond mode %s miimon 20", quiet, mode)
	for i, n := range queues {
		r.cable(i, n)
		r.enslave(i)
	}
	sh(a, "ip link set lan up && ip addr add %s dev lan", a.IPv4)
	sh(b, "ip link set bond0 up && ip addr add %s dev bond0", b.IPv4)
	for _, s := range []*netnstest.Side{a, b} {
		s.Do(t, func() error {
			l, err := netlink.LinkByName(s.Dev)
			if err == nil {
				s.Index, s.MAC = l.Attrs().Index, l.Attrs().HardwareAddr
			}
			return err
		})
	}
	r.begin()
	return r
}

// cable makes the veth pair of pN and ethN, with a sender at pN whose frames are as on a wire.
func (r *rig) cable(n, queues int) {
	r.t.Helper()
	a := r.net.A
	a.Output(r.t, "ip", "link", "add", fmt.Sprint("p", n), "numtxqueues", strconv.Itoa(queues), "numrxqueues", strconv.Itoa(queues), "type", "veth",
		"peer", "name", fmt.Sprint("eth", n), "netns", r.net.B.NS.Name(), "numtxqueues", strconv.Itoa(queues), "numrxqueues", strconv.Itoa(queues))
	for _, feature := range []string{netdev.TxChecksum, "tso", "gso", netdev.TxVLAN} {
		a.Do(r.t, func() error { return netdev.SetOffload(fmt.Sprint("p", n), feature, false) })
	}
	a.Output(r.t, "ip", "link", "set", fmt.Sprint("p", n), "master", "lan")
	a.Output(r.t, "ip", "link", "set", fmt.Sprint("p", n), "up")
}

func (r *rig) enslave(n int) {
	r.t.Helper()
	r.net.B.Output(r.t, "ip", "link", "set", fmt.Sprint("eth", n), "down")
	r.net.B.Output(r.t, "ip", "link", "set", fmt.Sprint("eth", n), "master", "bond0")
	r.net.B.Output(r.t, "ip", "link", "set", fmt.Sprint("eth", n), "up")
}

// pull takes a cable out, or puts it in again.
func (r *rig) pull(n int, out bool) {
	r.t.Helper()
	r.net.A.Output(r.t, "ip", "link", "set", fmt.Sprint("p", n), map[bool]string{true: "down", false: "up"}[out])
}

// members are the states that status shows of the bond's members, as "eth0 active, eth1 backup".
func (r *rig) members() string {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces) != 1 || st.Interfaces[0].Bond == nil {
		return fmt.Sprintf("no bond: %+v", st.Waiting)
	}
	var out []string
	for _, m := range st.Interfaces[0].Bond.Members {
		out = append(out, fmt.Sprintf("%s %s", m.Name, m.State))
	}
	return strings.Join(out, ", ")
}

func (r *rig) membersAre(want string) {
	r.t.Helper()
	r.eventually("the members are "+want, func() error {
		if got := r.members(); got != want {
			return fmt.Errorf("they are %s", got)
		}
		return nil
	})
}

// train sends numbered frames to the VM from side A every 2 ms until stop is closed, and tells how they arrived at the guest.
func (r *rig) train(g *guest, stop <-chan struct{}) <-chan arrivals {
	r.t.Helper()
	return r.trainFrom(r.net.A, g.side, stop)
}

// trainFrom is train between any two.
func (r *rig) trainFrom(from, to *netnstest.Side, stop <-chan struct{}) <-chan arrivals {
	r.t.Helper()
	in, c := from.Injector(r.t), to.Capture(r.t)
	sent := make(chan int, 1)
	go func() {
		n := 0
		for tick := time.NewTicker(2 * time.Millisecond); ; n++ {
			select {
			case <-stop:
				tick.Stop()
				sent <- n
				return
			case <-tick.C:
				payload := binary.BigEndian.AppendUint32(make([]byte, 0, 50), uint32(n))
				_ = in.Send(netnstest.Ethernet(to.MAC, from.MAC, etherTrain, payload[:50]))
			}
		}
	}()
	out := make(chan arrivals, 1)
	go func() {
		got := arrivals{times: map[uint32]int{}}
		last := time.Now()
		for {
			select {
			case got.sent = <-sent:
				lull := netnstest.Patience(200 * time.Millisecond) // of the train: other frames may come for ever
				for end := time.Now().Add(lull); time.Now().Before(end); {
					if f, ok := c.Poll(time.Until(end)); ok && got.note(f) {
						end = time.Now().Add(lull)
					}
				}
				out <- got
				return
			default:
			}
			if f, ok := c.Poll(20 * time.Millisecond); ok && got.note(f) {
				got.gap, last = max(got.gap, time.Since(last)), time.Now()
			}
		}
	}()
	return out
}

const etherTrain = 0x88b5 // for experiments

// arrivals is what a guest saw of a train.
type arrivals struct {
	sent  int
	times map[uint32]int // how often each frame came
	gap   time.Duration  // the longest wait between two frames
}

func (a *arrivals) note(f netnstest.Frame) bool {
	if len(f.Data) < 18 || binary.BigEndian.Uint16(f.Data[12:]) != etherTrain {
		return false
	}
	a.times[binary.BigEndian.Uint32(f.Data[14:])]++
	return true
}

// once wants each frame that came to have come once, and at most lost of them not at all.
func (a arrivals) once(t *testing.T, lost int) {
	t.Helper()
	for n, times := range a.times {
		if times != 1 {
			t.Errorf("frame %d came %d times", n, times)
		}
	}
	if len(a.times) == 0 || a.sent-len(a.times) > lost {
		t.Errorf("%d of %d frames came", len(a.times), a.sent)
	}
	t.Logf("%d frames of %d lost, longest gap %v", a.sent-len(a.times), a.sent, a.gap)
}

// isRARP tells the frames by which a VM's place is announced.
func isRARP(mac string) func(netnstest.Frame) bool {
	return func(f netnstest.Frame) bool {
		return len(f.Data) >= 14 && binary.BigEndian.Uint16(f.Data[12:]) == 0x8035 && fmt.Sprintf("% x", f.Data[6:12]) == strings.ReplaceAll(mac, ":", " ")
	}
}

// The active member of a bond goes down under a transfer: the VM keeps its front-end, the transfer goes on by the other member, in both
// directions, and the switch hears by which port the VM is now. On a hub, where each frame comes by both members, the VM gets it once.
func TestAnActiveBackupBondFailsOverUnderATransfer(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge ageing_time 0", 1, 1)
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.membersAre("eth0 active, eth1 backup")
	stop := make(chan struct{})
	out := r.train(g, stop)
	time.Sleep(netnstest.Patience(200 * time.Millisecond))
	close(stop)
	(<-out).once(t, 0)
	var st api.Stats
	if r.json(&st, "stats"); st.Outcomes["pass_backup"] == 0 {
		t.Errorf("nothing came by the backup: %v", st.Outcomes)
	}

	stop, end := make(chan struct{}), make(chan struct{})
	out = r.train(g, stop)
	done := r.transfers(g.side, end)
	p1 := r.otherEnd(1).CaptureAll(t)
	r.pull(0, true)
	r.membersAre("eth0 down, eth1 active")
	p1.Until(5*time.Second, isRARP(macA))
	netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
	r.pull(0, false)
	r.membersAre("eth0 backup, eth1 active")
	r.pull(1, true)
	r.membersAre("eth0 active, eth1 down")
	r.pull(1, false)
	r.membersAre("eth0 active, eth1 backup")
	close(stop)
	a := <-out
	a.once(t, a.sent) // how many are lost is the bond's miimon
	r.whole(end, done)
	g.calm(t)
	if said := r.log.String(); strings.Contains(said, "given back") {
		t.Error("the interface was given back")
	}
	// The way that remains is the one that status shows: nothing comes by a bond without links, and the VM is kept.
	r.pull(0, true)
	r.pull(1, true)
	r.membersAre("eth0 down, eth1 down")
	r.pull(1, false)
	r.membersAre("eth0 down, eth1 active")
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	g.calm(t)
}

// otherEnd is the other end of a member.
func (r *rig) otherEnd(n int) *netnstest.Side {
	s := &netnstest.Side{NS: r.net.A.NS, Dev: fmt.Sprint("p", n)}
	r.net.A.Do(r.t, func() error {
		l, err := netlink.LinkByName(s.Dev)
		if err == nil {
			s.Index = l.Attrs().Index
		}
		return err
	})
	return s
}

// Frames of a VM come in by all members of a bond that spreads flows, and its own leave by the member that the kernel chooses; LACP reaches
// the bond.
func TestBondsThatSpreadFlowsServeAVMByAllMembers(t *testing.T) {
	for _, mode := range []string{"balance-xor xmit_hash_policy layer3+4", "802.3ad lacp_rate fast xmit_hash_policy layer3+4"} {
		t.Run(strings.Fields(mode)[0], func(t *testing.T) {
			r := bondRig(t, mode, "type bond miimon 20 mode "+mode, 1, 2)
			g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
			r.membersAre("eth0 active, eth1 active")
			var st api.Status
			served := func() error {
				r.json(&st, "status")
				frames := map[string]uint64{}
				for _, q := range st.Interfaces[0].Queues {
					frames[q.Device] += q.RxFrames
				}
				if len(st.Interfaces[0].Queues) != 3 || frames["eth0"] == 0 || frames["eth1"] == 0 {
					return fmt.Errorf("%d queues, frames by member: %v", len(st.Interfaces[0].Queues), frames)
				}
				return nil
			}
			for range 40 { // each has a port of its own, and so its own way
				netnstest.Bulk(t, r.net.A, g.side, 64<<10, false, time.Minute)
				if served() == nil {
					break
				}
			}
			if err := served(); err != nil {
				t.Error(err)
			}
			netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
			if m := st.Interfaces[0].Bond; m.Mode != strings.Fields(mode)[0] || len(m.Members[1].Queues) != 2 {
				t.Errorf("%+v", m)
			}
			var stats api.Stats
			r.json(&stats, "stats")
			explain(t, stats)
			var flows api.Flows
			if r.json(&flows, "flows"); len(flows.Flows) == 0 || flows.Flows[0].Iface != "bond0" {
				t.Errorf("flows are the bond's: %+v", flows)
			}
		})
	}
}

// Members come and leave while a VM is attached, with other numbers of queues, and so does the controller: the transfer goes on.
func TestMembersOfABondComeAndLeaveUnderATransfer(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	end := make(chan struct{})
	done := r.transfers(g.side, end)
	r.cable(2, 2)
	r.enslave(2)
	r.membersAre("eth0 active, eth1 backup, eth2 backup")
	queues := func(want ...string) {
		t.Helper()
		r.eventually("the queues are the members'", func() error {
			var st api.Status
			r.json(&st, "status")
			var got []string
			for _, q := range st.Interfaces[0].Queues {
				got = append(got, fmt.Sprint(q.ID, q.Device, "/", q.DeviceQueue))
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}
	queues("0eth0/0", "1eth1/0", "2eth2/0", "3eth2/1")
	r.net.B.Output(t, "ip", "link", "set", "eth0", "nomaster") // the active one, and the first: the VM's group frames come by another worker then
	r.membersAre("eth1 active, eth2 backup")
	queues("1eth1/0", "2eth2/0", "3eth2/1")
	if out := r.net.B.Output(t, "ip", "link", "show", "dev", "eth0"); strings.Contains(out, "xdp") {
		t.Errorf("a member that left keeps the program: %s", out)
	}
	r.net.B.Output(t, "ip", "link", "set", "eth1", "nomaster")
	r.membersAre("eth2 active")
	r.enslave(0)
	r.membersAre("eth0 backup, eth2 active")
	queues("2eth2/0", "3eth2/1", "0eth0/0")
	r.whole(end, done)
	netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
	g.calm(t)
	t.Log("replaced:", r.replace())
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	r.crash()
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	g.calm(t)
	r.membersAre("eth0 backup, eth2 active")
	r.must("detach", "bond0")
	for _, dev := range []string{"bond0", "eth0", "eth2"} {
		if out := r.net.B.Output(t, "ip", "-d", "link", "show", "dev", dev); strings.Contains(out, "xdp") || strings.Contains(out, "promiscuity 1 ") {
			t.Errorf("left behind: %s", out)
		}
	}
}

// What cannot be is said in one line, and what becomes wrong later makes the VMs wait with the reason, until it is right again.
func TestWhatIsWrongWithABondIsSaid(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge")
	sock := func(vm string) []string {
		return []string{"--vm", vm, "--mac", macA, "--vhost-user", r.dir + "/" + vm + ".sock"}
	}
	refused := func(dev, says string) {
		t.Helper()
		out, code := r.cli(append([]string{"attach", dev}, sock("vm0")...)...)
		if code != 1 || !strings.Contains(out, says) || strings.Count(strings.TrimSpace(out), "\n") != 0 {
			t.Errorf("attach %s: exit %d, want 1 and one line with %q: %s", dev, code, says, out)
		}
	}
	set := func(command string) {
		t.Helper()
		r.net.B.Output(t, "sh", "-ec", command)
	}
	refused("bond0", "no members")
	r.cable(0, 1)
	r.cable(1, 1)
	r.enslave(0)
	r.enslave(1)
	refused("eth0", "'rscctl attach bond0'")
	set("ip link add link bond0 name bond0.7 type vlan id 7")
	refused("bond0.7", "'rscctl attach bond0 --vlan 7'")
	set("ip link del bond0.7")
	foreign := foreignProgram(t, r.net.B, "eth1")
	refused("bond0", "member eth1")
	foreign()
	set("ip link set eth1 down") // a member that is down is one by which nothing comes
	r.attach("vm0", macA)
	r.membersAre("eth0 active, eth1 down")
	set("ip link set eth1 up")
	r.membersAre("eth0 active, eth1 backup")

	set("ip link set bond0 mtu 1600")
	r.eventually("the MTU is followed", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Interfaces) != 1 || st.Interfaces[0].MTU != 1600 || len(st.Waiting) > 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	waits := func(says string) {
		t.Helper()
		r.eventually("the VM waits: "+says, func() error {
			var st api.Status
			if r.json(&st, "status"); len(st.Waiting) != 1 || !strings.Contains(st.Waiting[0].Cause, says) {
				return fmt.Errorf("%+v", st.Waiting)
			}
			return nil
		})
	}
	set("ip link set eth0 nomaster && ip link set eth1 nomaster")
	waits("no members")
	set("ip link set bond0 down && ip link set bond0 type bond mode balance-rr && ip link set eth0 down && ip link set eth0 master bond0 && ip link set bond0 up")
	waits("balance-rr")
	set("ip link set eth0 nomaster && ip link set bond0 down && ip link set bond0 type bond mode balance-xor && ip link set eth0 master bond0 && ip link set bond0 up")
	r.membersAre("eth0 active")

	// A member that comes with somebody's program on it is not served, and the others are.
	foreign = foreignProgram(t, r.net.B, "eth1")
	r.enslave(1)
	r.eventually("status says which member is not served", func() error {
		var st api.Status
		r.json(&st, "status")
		if i := st.Interfaces[0]; len(i.Bond.Members) != 2 || !strings.Contains(i.Bond.Members[1].Why, "program") || i.Health.State != api.HealthDegraded {
			return fmt.Errorf("%+v", i)
		}
		return nil
	})
	foreign()
	r.eventually("it is served when the program has gone", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Interfaces[0].Bond.Members[1].Queues) != 1 {
			return errNotYet
		}
		return nil
	})
}

// foreignProgram puts somebody else's XDP program on an interface.
func foreignProgram(t *testing.T, s *netnstest.Side, dev string) (off func()) {
	t.Helper()
	var l link.Link
	s.Do(t, func() error {
		nic, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "foreign", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
		if err != nil {
			return err
		}
		defer p.Close()
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: nic.Attrs().Index, Flags: link.XDPGenericMode})
		return err
	})
	return func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
