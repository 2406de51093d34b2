package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// An interface whose XDP program is somebody else's serves VMs by its map of sockets: TCP arrives whole and merged, in both families, and
// goes back; what is not offered is said; and detach leaves the program where it was and the map's entry free.
func TestSomebodyElsesProgramBringsTheFrames(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	s := newStranger(r, 4)
	sock, said := s.attach("vm0", macA, "--queue", "0")
	if !strings.Contains(said, "note: ") || !strings.Contains(said, "somebody else's") || !strings.Contains(said, "flows") {
		t.Errorf("attach does not say what is not offered:\n%s", said)
	}
	g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.10/24", "fd77::10/64")
	for _, v6 := range []bool{false, true} {
		before := g.Stats()
		netnstest.Bulk(t, r.net.A, g.side, 8<<20, v6, time.Minute)
		after := g.Stats()
		if segs := float64(after.Segments-before.Segments) / float64(after.DataFrames-before.DataFrames); segs < 2 {
			t.Errorf("IPv6 %t: %.1f segments a frame: nothing was merged", v6, segs)
		}
		netnstest.Bulk(t, g.side, r.net.A, 4<<20, v6, time.Minute)
	}
	s.untouched("attached")

	r.net.A.Inject(t, pt.TCP{DstMAC: [6]byte{2, 0, 0, 0, 9, 9}, SrcMAC: [6]byte(r.net.A.MAC), Len: 100}.Frame())
	r.eventually("a frame for nobody is counted", func() error {
		var st api.Status
		r.json(&st, "status")
		if q := st.Interfaces[0].Queues[0]; q.RxNobody == 0 || q.RxUnknown != 0 {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	var st api.Status
	r.json(&st, "status")
	nic := st.Interfaces[0]
	if f := nic.Foreign; f == nil || f.XSKMap != s.path || !slices.Equal(f.Queues, []uint16{0}) || f.Name != "theirs" || len(f.NotOffered) == 0 || nic.Metadata != nil || nic.XDPMode != api.XDPNative {
		t.Errorf("status: %+v of %+v", nic.Foreign, nic)
	}
	r.healthy("with the stranger's program", api.HealthGood)
	if out := strings.Join(strings.Fields(r.must("status")), " "); !strings.Contains(out, "program: foreign") || !strings.Contains(out, "xsk-map "+s.path+", queues 0") || !strings.Contains(out, "not offered: ") {
		t.Errorf("status:\n%s", out)
	}
	if out := r.must("flows"); !strings.Contains(out, "somebody else's") || strings.Contains(out, "no flows yet") {
		t.Errorf("flows does not say why there are none:\n%s", out)
	}
	var stats api.Stats
	r.json(&stats, "stats")
	explain(t, stats)

	own := s.socket()
	if !s.taken(0, own) {
		t.Error("no socket is in the map")
	}
	if out := r.must("detach", r.net.B.Dev); !strings.Contains(out, s.path) {
		t.Errorf("detach does not name the map:\n%s", out)
	}
	if s.taken(0, own) {
		t.Error("a socket is left in the map")
	}
	s.untouched("detached")
}

// A tag that is in the frame says whose it is. Where tags may travel beside it, attach warns: the frames of any VLAN would be untagged ones.
func TestTagsInFramesOfAForeignProgramCount(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true, StaticNeighbors: true})
	s := newStranger(r, 1)
	plainSocket, said := s.attach("plain", macA, "--queue", "0")
	if strings.Contains(said, "VLAN tags cannot be seen") {
		t.Errorf("tags are in the frames:\n%s", said)
	}
	sevenSocket, _ := s.attach("seven", macA, "--queue", "0", "--vlan", "7")
	plain := r.boot(stackguest.Config{Socket: plainSocket, MAC: mac(t, macA)}).side.Capture(t)
	seven := r.boot(stackguest.Config{Socket: sevenSocket, MAC: mac(t, macA)}).side.Capture(t)
	frame := func(length int, tags ...uint16) []byte {
		return pt.TCP{DstMAC: [6]byte(mac(t, macA)), SrcMAC: [6]byte(r.net.A.MAC), Len: length, Tags: tags}.Frame()
	}
	r.net.A.Inject(t, frame(300, 7), frame(301, 8), frame(302))
	is := func(want []byte) func(f netnstest.Frame) bool {
		return func(f netnstest.Frame) bool { return bytes.Equal(f.Data, want) }
	}
	seven.Until(5*time.Second, is(frame(300)))
	plain.Until(5*time.Second, is(frame(302)))
	for _, f := range append(plain.Drain(100*time.Millisecond), seven.Drain(0)...) {
		if len(f.Data) == len(frame(300)) || len(f.Data) == len(frame(301)) {
			t.Errorf("a frame of another VLAN: %d bytes", len(f.Data))
		}
	}

	r = newRig(t, netnstest.Options{NoIPv6: true, KeepTxVLAN: true})
	if _, said := newStranger(r, 1).attach("vm0", macA, "--queue", "0"); !strings.Contains(said, "warning: ") || !strings.Contains(said, "VLAN tags cannot be seen") {
		t.Errorf("tags travel beside the frames:\n%s", said)
	}
}

// Only the queues that are named get sockets, under their own numbers.
func TestOnlyTheNamedQueuesAreTaken(t *testing.T) {
	r := newRig(t, netnstest.Options{Queues: 3, NoIPv6: true})
	s := newStranger(r, 3)
	own := s.socket()
	if said := r.must(append(s.flags("vm0", macA), "--queue", "2,1", "--dry-run")...); !strings.Contains(said, "queues 1,2 into the map pinned at "+s.path) || s.taken(1, own) {
		t.Errorf("--dry-run:\n%s", said)
	}
	s.attach("vm0", macA, "--queue", "2,1")
	for queue, want := range []bool{false, true, true} {
		if s.taken(queue, own) != want {
			t.Errorf("queue %d: a socket of ours is in the map: %t", queue, !want)
		}
	}
	var st api.Status
	r.json(&st, "status")
	ids := []int{}
	for _, q := range st.Interfaces[0].Queues {
		ids = append(ids, q.ID)
	}
	if !slices.Equal(ids, []int{1, 2}) || !slices.Equal(st.Interfaces[0].Foreign.Queues, []uint16{1, 2}) {
		t.Errorf("queues %v of %+v", ids, st.Interfaces[0].Foreign)
	}
	file := filepath.Join(r.dir, "vms.yaml")
	exported := r.must("export")
	if err := os.WriteFile(file, []byte(exported), 0o600); err != nil {
		t.Fatal(err)
	}
	var none struct{ Steps []any }
	if r.json(&none, "apply", "-f", file); len(none.Steps) != 0 {
		t.Errorf("what was exported differs: %+v\n%s", none, exported)
	}
	r.must("detach", r.net.B.Dev)
	r.must("apply", "-f", file)
	if s.taken(0, own) || !s.taken(1, own) || !s.taken(2, own) {
		t.Errorf("what was exported is not what was there:\n%s", exported)
	}
}

// The VMs of such an interface outlive an upgrade, a crash of the process that works and the end of the whole controller: their frames come by
// the same map.
func TestAForeignMapOutlivesTheController(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	s := newStranger(r, 1)
	sock, _ := s.attach("vm0", macA, "--queue", "0")
	g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.10/24")
	own := s.socket()
	whole := func(when string) {
		t.Helper()
		netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
		s.untouched(when)
		if !s.taken(0, own) {
			t.Errorf("%s: no socket is in the map", when)
		}
		var st api.Stats
		r.json(&st, "stats")
		explain(t, st)
	}
	whole("attached")
	r.replace()
	g.calm(t)
	whole("replaced")
	if !netnstest.Emulated() {
		r.crash()
		g.calm(t)
		whole("after a crash")
	}
	r.kill() // the keeper too: the next one has the state file alone
	r.start()
	r.eventually("the VM is back", func() error {
		var st api.Status
		r.json(&st, "status")
		if len(st.Interfaces) != 1 || st.Interfaces[0].Foreign == nil {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	s.untouched("started again")
	g = r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.10/24")
	whole("started again")
	r.must("detach", r.net.B.Dev)
	if s.taken(0, own) {
		t.Error("a socket is left in the map")
	}
}

// What cannot be is refused by one line that says what to do, and leaves nothing.
func TestWrongMapsAndQueuesAreRefused(t *testing.T) {
	r := newRig(t, netnstest.Options{Queues: 2, NoIPv6: true})
	s := newStranger(r, 2)
	s.pin(filepath.Join(s.dir, "array"), ebpf.Array, 2)
	s.pin(filepath.Join(s.dir, "small"), ebpf.XSKMap, 1)
	if err := s.prog.Pin(filepath.Join(s.dir, "prog")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own := s.socket()
	m, err := bpf.OpenSocketMap(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Take(1, own.FD()); err != nil {
		t.Fatal(err)
	}
	vm := s.flags("vm0", macA)
	way := vm[:len(vm)-2] // without the map
	with := func(path string, queues ...string) []string {
		args := append(slices.Clone(way), "--xsk-map", path)
		for _, q := range queues {
			args = append(args, "--queue", q)
		}
		return args
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing there":       {with(filepath.Join(s.dir, "none"), "0"), 1, "nothing is pinned there"},
		"a program":           {with(filepath.Join(s.dir, "prog"), "0"), 1, "bpftool map show pinned"},
		"a file":              {with(file, "0"), 1, "no XSKMAP"},
		"another map":         {with(filepath.Join(s.dir, "array"), "0"), 1, "it is of type Array"},
		"too small":           {with(filepath.Join(s.dir, "small"), "1"), 1, "queue 1: no such queue: it has entries for queues 0 to 0"},
		"no such queue":       {with(s.path, "2"), 1, "queue 2: no such queue: name receive queues 0 to 1"},
		"twice":               {with(s.path, "0,0"), 2, "named twice"},
		"no number":           {with(s.path, "first"), 2, "not the number of a queue"},
		"no queue":            {with(s.path), 2, "--queue 0"},
		"no map":              {append(slices.Clone(way), "--queue", "0"), 2, "--xsk-map"},
		"a tap":               {[]string{"attach", r.net.B.Dev, "--vm", "x", "--mac", macB, "--tap", "tap9", "--xsk-map", s.path, "--queue", "0"}, 2, "--vhost-user"},
		"taken":               {with(s.path, "0,1"), 1, "another socket is in it: end who uses it, or name other queues"},
		"foreign without map": {way, 1, "--xsk-map"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := r.cli(tc.args...)
			if code != tc.code || strings.Count(strings.TrimSpace(out), "\n") != 0 || !strings.Contains(out, tc.says) {
				t.Errorf("exit %d, want %d, one line that says %q:\n%s", code, tc.code, tc.says, out)
			}
			var st api.Status
			if r.json(&st, "status"); len(st.Interfaces) != 0 || len(st.Waiting) != 0 {
				t.Errorf("status: %+v", st)
			}
			s.untouched("refused")
			if s.taken(0, own) || s.taken(1, own) {
				t.Error("a socket is left in the map")
			}
			if err := m.Take(1, own.FD()); err != nil {
				t.Fatal(err)
			}
		})
	}

	s.attach("vm0", macA, "--queue", "0")
	for name, more := range map[string][]string{
		"other queues": {"--xsk-map", s.path, "--queue", "0,1"},
		"another map":  {"--xsk-map", filepath.Join(s.dir, "small"), "--queue", "0"},
		"our program":  {},
	} {
		args := append([]string{"attach", r.net.B.Dev, "--vm", "vm1", "--mac", macB, "--vhost-user", filepath.Join(r.dir, "vm1.sock")}, more...)
		if out, code := r.cli(args...); code != 1 || !strings.Contains(out, "attach with '--xsk-map "+s.path+" --queue 0'") {
			t.Errorf("a second VM with %s: exit %d: %s", name, code, out)
		}
		args = append([]string{"attach", r.net.B.Dev, "--vm", "vm0", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "vm0.sock")}, more...)
		if out, code := r.cli(args...); code != 1 || !strings.Contains(out, "rscctl detach") {
			t.Errorf("the same VM with %s: exit %d: %s", name, code, out)
		}
	}
	s.attach("vm1", macB, "--queue", "0")
}

// Frames longer than a chunk are refused here too.
func TestAForeignMapDoesNotMakeFramesShorter(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	s := newStranger(r, 1)
	s.off()
	r.net.B.Output(t, "ip", "link", "set", "dev", r.net.B.Dev, "mtu", "9000")
	out, code := r.cli(append(s.flags("vm0", macA), "--queue", "0")...)
	if code != 1 || strings.Count(strings.TrimSpace(out), "\n") != 0 || !strings.Contains(out, "MTU too large") {
		t.Errorf("exit %d: %s", code, out)
	}
	r.untouched(t)
}

// An interface that has rscctl's own program is not given to a map beside it.
func TestAMapBesideOurOwnProgramIsRefused(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	s := newStranger(r, 1)
	s.off()
	r.attach("vm0", macA)
	out, code := r.cli(append(s.flags("vm1", macB), "--queue", "0")...)
	if code != 1 || !strings.Contains(out, "leave --xsk-map and --queue out") {
		t.Errorf("exit %d: %s", code, out)
	}
	other := *r
	other.dir = t.TempDir()
	other.start()
	defer other.stop()
	out, code = other.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macB, "--vhost-user", filepath.Join(other.dir, "x.sock"), "--xsk-map", s.path, "--queue", "0")
	if code != 1 || !strings.Contains(out, "another controller") || !strings.Contains(out, "leave --xsk-map out") {
		t.Errorf("an interface of another controller: exit %d: %s", code, out)
	}
}

// While a VM is attached, health says what the stranger does to the map, and that it is good again: another socket in the place of ours, a pin
// that is gone, a program that is off. A map that is pinned in the place of the first gets the sockets.
func TestWhatBecomesOfAForeignMapIsSaid(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	s := newStranger(r, 1)
	sock, _ := s.attach("vm0", macA, "--queue", "0")
	g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.10/24")
	own := s.socket()
	m, err := ebpf.LoadPinnedMap(s.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r.healthy("in the beginning", api.HealthGood)

	if err := m.Put(uint32(0), uint32(own.FD())); err != nil {
		t.Fatal(err)
	}
	r.healthy("another socket in the place of ours", api.HealthDegraded, "queue 0: xskmap: entry 0: another socket is in it")
	r.replace() // is no reason to fail
	r.healthy("another socket in the place of ours, after an upgrade", api.HealthDegraded, "another socket is in it")
	if err := m.Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	r.healthy("the place is free again", api.HealthGood)
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)

	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	r.healthy("the pin is gone", api.HealthDegraded, "nothing is pinned there")
	r.replace()
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute) // by the map that the program still has
	s.begin(s.pin(s.path, ebpf.XSKMap, 1))
	r.healthy("another map is pinned", api.HealthGood)
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	if !netnstest.Emulated() {
		r.crash()
		netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
	}

	s.off()
	r.healthy("the program is off", api.HealthDegraded, "no XDP program is on")
	now, err := ebpf.LoadPinnedMap(s.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	if err := now.Put(uint32(0), uint32(own.FD())); err != nil {
		t.Fatal(err)
	}
	r.must("detach", r.net.B.Dev)
	if err := now.Update(uint32(0), uint32(own.FD()), ebpf.UpdateExist); err != nil {
		t.Errorf("detach has taken another one's socket out: %v", err)
	}
}
