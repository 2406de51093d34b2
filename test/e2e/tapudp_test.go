package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// takesDatagrams tells whether this kernel's taps hand out superframes of UDP (Linux 6.2).
func takesDatagrams(t *testing.T) (takes bool) {
	t.Helper()
	if err := netnstest.Namespace(t).Do(func() error {
		p, err := tapvm.OpenTap("probe", 12, tapvm.CSUM)
		if err != nil {
			return err
		}
		takes = p.SetOffload(tapvm.CSUM|tapvm.USO) == nil
		return p.Close()
	}); err != nil {
		t.Fatal(err)
	}
	return takes
}

// Datagrams reach a VM on its own tap merged where the tap's reader takes superframes of UDP, and by the kernel's path where it does not, by
// policy or by the guest's choice, also when that changes under a stream. None is lost or repeated, none is overtaken but where they change ways, and status and
// policy say which.
func TestDatagramsReachATapMergedWhereItTakesThem(t *testing.T) {
	if !takesDatagrams(t) {
		t.Skip("allowed: this kernel's tap takes no UDP superframes (before Linux 6.2): the guests are shown them where it does")
	}
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.bridge()
	takes := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24"), With: tapvm.USO})
	r.attachTap("vm0", macA)
	not := r.tapVM(tapvm.Options{Tap: "vm1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")})
	r.attachTap("vm1", macB)
	n := streamLen()
	// pass sends a stream and returns in how many frames it came, and how many packets came by us. A change of ways, by switches and where the worker got no
	// time, may let late_packets be overtaken, and what the worker or the kernel's path had in hand (docs/vhost-net.md, Switching).
	pass := func(vm *tapvm.VM, name string, n uint64, switches int, meanwhile func()) (frames, ours uint64) {
		t.Helper()
		var before, after api.Stats
		r.json(&before, "stats", "--vm", name)
		was := vm.Stats()
		d := newDatagramStream(t)
		d.anyOrder = true
		d.pass(t, r.net.A, vm.Guest, stream{datagrams: n}, meanwhile)
		r.json(&after, "stats", "--vm", name)
		const inHand = 128
		counted := int(after.VMs[0].LatePackets - before.VMs[0].LatePackets)
		for queue, q := range after.Queues {
			switches += int(q.Hangs - before.Queues[queue].Hangs)
		}
		if d.late > 0 && switches == 0 || d.late > counted+switches*inHand {
			t.Errorf("%s: %d datagrams came behind later ones, %d are counted as such, with %d changes of ways", name, d.late, counted, switches)
		}
		now := vm.Stats()
		if got := now.Datagrams - was.Datagrams; got < n || after.Unexplained != 0 {
			t.Errorf("%s: %d datagrams of %d, %d packets unexplained", name, got, n, after.Unexplained)
		}
		return now.UDPFrames - was.UDPFrames, after.VMs[0].RxPackets - before.VMs[0].RxPackets
	}
	told := func(name string, merged bool, note string) {
		t.Helper()
		r.eventually(name+" is told", func() error {
			var p api.PolicyResponse
			r.json(&p, "policy", "get", name)
			var st api.Status
			r.json(&st, "status")
			i := slices.IndexFunc(st.Interfaces[0].Ports, func(p api.Port) bool { return p.VM == name })
			if port := st.Interfaces[0].Ports[i]; p.UDPMerged != merged || p.UDPNote != note || port.UDPMerged != merged || port.UDPNote != note {
				return fmt.Errorf("policy %v %q, status %v %q", p.UDPMerged, p.UDPNote, port.UDPMerged, port.UDPNote)
			}
			return nil
		})
	}
	const without = "the guest negotiated neither GUEST_USO4 nor GUEST_USO6"
	netnstest.Bulk(t, r.net.A, takes.Guest, 1<<10, false, time.Minute) // neighbours know each other
	netnstest.Bulk(t, r.net.A, not.Guest, 1<<10, false, time.Minute)
	told("vm0", true, "")
	merged := func() {
		t.Helper()
		frames, ours := pass(takes, "vm0", n, 0, nil)
		if alone := n - min(n, ours); ours < n/4 || frames > alone+ours/4 { // what comes while a worker gets no time has the kernel's path
			t.Errorf("%d datagrams in %d frames, %d by us", n, frames, ours)
		}
	}
	merged()
	told("vm1", false, without)
	if _, ours := pass(not, "vm1", n, 0, nil); ours > 0 {
		t.Errorf("%d datagrams came by us to a guest that takes no superframes", ours)
	}
	r.must("policy", "set", "vm0", "--udp", "off")
	told("vm0", false, "")
	if _, ours := pass(takes, "vm0", n, 0, nil); ours > 0 {
		t.Errorf("%d datagrams came by us with --udp off", ours)
	}
	r.must("policy", "set", "vm0", "--udp", "on", "--exclude-port", fmt.Sprint(quicPort))
	if _, ours := pass(takes, "vm0", n, 0, nil); ours > 0 {
		t.Errorf("%d datagrams of an excluded port came by us", ours)
	}
	r.must("policy", "reset", "vm0")
	pass(takes, "vm0", 10*n, 4, func() { // the guest changes its mind under way
		for i := range 4 {
			time.Sleep(50 * time.Millisecond)
			o := tapvm.AllOffloads
			if i%2 == 1 {
				o |= tapvm.USO
			}
			if err := takes.SetOffload(o); err != nil {
				t.Error(err)
			}
		}
	})
	if err := takes.SetOffload(tapvm.AllOffloads); err != nil {
		t.Fatal(err)
	}
	told("vm0", false, without)
	if _, ours := pass(takes, "vm0", n, 0, nil); ours > 0 {
		t.Errorf("%d datagrams came by us to a guest that takes superframes no more", ours)
	}
	if err := takes.SetOffload(tapvm.AllOffloads | tapvm.USO); err != nil {
		t.Fatal(err)
	}
	told("vm0", true, "")
	merged()
}
