package netdev

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func hw(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

const (
	macA, macB       = "52:54:00:aa:00:01", "52:54:00:bb:00:02"
	tapOfA, tapOfB   = "fe:54:00:aa:00:01", "fe:54:00:bb:00:02"
	someMAC, nestedA = "3e:11:22:33:44:55", "02:42:ac:11:00:02"
)

func libvirtTap(name string, index int, mac string) tapView {
	return tapView{name: name, index: index, mac: hw(mac), carrier: true, connected: true, bridge: "br0"}
}

// but changes a copy.
func but(t tapView, edit func(*tapView)) tapView {
	edit(&t)
	return t
}

// The one tap that is proved is found, by whatever shows it; a tap of another VM never is.
func TestTheTapOfAVMIsFoundByProof(t *testing.T) {
	a, b := libvirtTap("vnet0", 10, tapOfA), libvirtTap("vnet1", 11, tapOfB)
	plain := libvirtTap("tap5", 12, someMAC)
	asks := func(edit func(*Guest)) Guest {
		g := Guest{MAC: hw(macA), Tap: "vnet0"}
		if edit != nil {
			edit(&g)
		}
		return g
	}
	for name, c := range map[string]struct {
		g    Guest
		taps []tapView
		want string // the tap found
		err  error
		says []string
	}{
		"libvirt's address":                  {asks(nil), []tapView{a, b}, "vnet0", nil, nil},
		"no tap named":                       {asks(func(g *Guest) { g.Tap = "" }), []tapView{a, b}, "vnet0", nil, nil},
		"the tap of another VM":              {asks(func(g *Guest) { g.Tap = "vnet1" }), []tapView{b}, "", ErrUnproved, []string{"vnet1", tapOfB}},
		"behind another tap than named":      {asks(func(g *Guest) { g.Tap = "vnet1" }), []tapView{a, b}, "", ErrUnproved, []string{"vnet1", "behind tap vnet0"}},
		"came back behind another":           {asks(func(g *Guest) { g.Tap, g.Follow = "vnet1", true }), []tapView{a, b}, "vnet0", nil, nil},
		"came back, name is another's":       {asks(func(g *Guest) { g.Follow = true }), []tapView{but(b, func(t *tapView) { t.name = "vnet0" }), but(a, func(t *tapView) { t.name = "vnet1" })}, "vnet1", nil, nil},
		"did not come back":                  {asks(func(g *Guest) { g.Follow = true }), []tapView{b}, "", ErrUnproved, []string{macA}},
		"no such tap":                        {asks(func(g *Guest) { g.Tap = "nosuch0" }), []tapView{b}, "", ErrNotTap, []string{"nosuch0"}},
		"nothing is known":                   {asks(func(g *Guest) { g.Tap = "tap5" }), []tapView{plain}, "", ErrUnproved, []string{"tap5", "--domain", "--trust-tap", "send a frame"}},
		"nobody has it open":                 {asks(func(g *Guest) { g.Tap = "tap5" }), []tapView{but(plain, func(t *tapView) { t.carrier = false })}, "", ErrUnproved, []string{"nobody has it open: start the VM"}},
		"the operator's word":                {asks(func(g *Guest) { g.Tap, g.Trust = "tap5", true }), []tapView{plain, b}, "tap5", nil, nil},
		"the operator's word, other tap":     {asks(func(g *Guest) { g.Tap, g.Trust, g.Follow = "tap9", true, true }), []tapView{plain}, "", ErrUnproved, nil},
		"the operator's word, elsewhere":     {asks(func(g *Guest) { g.Tap, g.Trust = "tap5", true }), []tapView{but(plain, func(t *tapView) { t.elsewhere = "vnet1" })}, "", ErrUnproved, []string{"vnet1"}},
		"the guest has changed its MAC":      {asks(func(g *Guest) { g.Tap, g.Trust = "vnet1", true }), []tapView{but(b, func(t *tapView) { t.here = true })}, "vnet1", nil, nil},
		"the bridge's entry":                 {asks(func(g *Guest) { g.Tap = "tap5" }), []tapView{but(plain, func(t *tapView) { t.here = true })}, "tap5", nil, nil},
		"an entry by a spoofing VM":          {asks(func(g *Guest) { g.Tap = "vnet1" }), []tapView{but(b, func(t *tapView) { t.here = true })}, "", ErrUnproved, []string{tapOfB}},
		"an entry at another port":           {asks(nil), []tapView{but(a, func(t *tapView) { t.elsewhere = "eth0" })}, "", ErrUnproved, []string{"port eth0"}},
		"others learned, not the VM":         {asks(nil), []tapView{but(a, func(t *tapView) { t.others = []net.HardwareAddr{hw(nestedA)} })}, "", ErrUnproved, []string{nestedA}},
		"others learned, and the VM":         {asks(nil), []tapView{but(a, func(t *tapView) { t.here, t.others = true, []net.HardwareAddr{hw(nestedA)} })}, "vnet0", nil, nil},
		"held by the VM's process":           {asks(func(g *Guest) { g.Tap = "tap5" }), []tapView{but(plain, func(t *tapView) { t.held = []holder{{7, hw(macA)}} })}, "tap5", nil, nil},
		"held by another VM's process":       {asks(nil), []tapView{but(a, func(t *tapView) { t.held = []holder{{7, hw(macB)}} })}, "", ErrUnproved, []string{"process 7", macB}},
		"a random address that is fe":        {asks(func(g *Guest) { g.Tap = "vnet1" }), []tapView{but(b, func(t *tapView) { t.held = []holder{{7, hw(macA)}} })}, "", ErrUnproved, []string{tapOfB}},
		"the same, and libvirt names it":     {asks(func(g *Guest) { g.Tap, g.Named = "vnet1", "vnet1" }), []tapView{but(b, func(t *tapView) { t.held = []holder{{7, hw(macA)}} })}, "vnet1", nil, nil},
		"the same, on the operator's word":   {asks(func(g *Guest) { g.Tap, g.Trust = "vnet1", true }), []tapView{but(b, func(t *tapView) { t.held = []holder{{7, hw(macA)}} })}, "vnet1", nil, nil},
		"libvirt names it":                   {asks(func(g *Guest) { g.Tap, g.Named = "tap5", "tap5" }), []tapView{plain}, "tap5", nil, nil},
		"libvirt names another":              {asks(func(g *Guest) { g.Named = "vnet1" }), []tapView{a, but(b, func(t *tapView) { t.mac = hw(someMAC) })}, "", ErrUnproved, []string{"vnet0", "behind tap vnet1"}},
		"libvirt names one that is not here": {asks(func(g *Guest) { g.Tap, g.Named = "", "vnet7" }), []tapView{plain}, "", ErrUnproved, []string{"vnet7", "namespace"}},
		"two in one network":                 {asks(nil), []tapView{a, but(a, func(t *tapView) { t.name, t.index = "vnet9", 19 })}, "", ErrAmbiguous, []string{"vnet0", "vnet9"}},
		"the same address elsewhere":         {asks(nil), []tapView{a, but(a, func(t *tapView) { t.name, t.index, t.connected = "vnet9", 19, false })}, "vnet0", nil, nil},
		"one that was left by the VM":        {asks(func(g *Guest) { g.Follow = true }), []tapView{but(a, func(t *tapView) { t.carrier = false }), but(a, func(t *tapView) { t.name, t.index = "vnet9", 19 })}, "vnet9", nil, nil},
		"tails that differ in one byte":      {asks(nil), []tapView{libvirtTap("vnet0", 10, "fe:54:00:aa:00:02")}, "", ErrUnproved, nil},
		"not libvirt's, but the VM's own":    {asks(func(g *Guest) { g.Tap = "tap5" }), []tapView{but(plain, func(t *tapView) { t.mac = hw(macA) })}, "", ErrUnproved, nil},
	} {
		p, err := c.g.choose(c.taps)
		if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
			continue
		}
		if err == nil && (p.Tap != c.want || p.By == "") {
			t.Errorf("%s: tap %s by %q, want %s", name, p.Tap, p.By, c.want)
		}
		for _, want := range c.says {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error does not say %q: %v", name, want, err)
			}
		}
	}
}

// Within one life of the tap a proof holds until something speaks against it; in a new one it is nothing.
func TestAProofHoldsForOneLifeOfTheTap(t *testing.T) {
	a := libvirtTap("vnet0", 10, tapOfA)
	learned := but(libvirtTap("tap5", 12, someMAC), func(t *tapView) { t.here = true })
	for name, c := range map[string]struct {
		g      Guest
		proved tapView
		now    func(*tapView)
		err    error
		tap    string
	}{
		"nothing has changed":             {Guest{}, a, func(t *tapView) {}, nil, "vnet0"},
		"renamed":                         {Guest{}, a, func(t *tapView) { t.name = "db1" }, nil, "db1"},
		"renamed, by libvirt's name":      {Guest{Named: "vnet0"}, but(a, func(t *tapView) { t.mac = hw(someMAC) }), func(t *tapView) { t.name = "db1" }, nil, "db1"},
		"renamed, by the operator's word": {Guest{Tap: "vnet0", Trust: true}, but(a, func(t *tapView) { t.mac = hw(someMAC) }), func(t *tapView) { t.name = "db1" }, nil, "db1"},
		"the entry aged":                  {Guest{}, learned, func(t *tapView) { t.here = false }, nil, "tap5"},
		"the entry aged, others came":     {Guest{}, learned, func(t *tapView) { t.here, t.others = false, []net.HardwareAddr{hw(macB)} }, ErrUnproved, ""},
		"the VM is elsewhere":             {Guest{}, learned, func(t *tapView) { t.here, t.elsewhere = false, "vnet7" }, ErrUnproved, ""},
		"the address was changed":         {Guest{}, a, func(t *tapView) { t.mac = hw(tapOfB) }, ErrUnproved, ""},
		"reopened, nothing shows who":     {Guest{}, learned, func(t *tapView) { t.downs, t.here = 1, false }, ErrReopened, ""},
		"reopened, by another":            {Guest{}, a, func(t *tapView) { t.downs, t.held = 1, []holder{{8, hw(macB)}} }, ErrReopened, ""},
		"reopened, by the VM":             {Guest{}, a, func(t *tapView) { t.downs = 1 }, nil, "vnet0"},
		"reopened, libvirt said so then":  {Guest{Named: "tap5"}, learned, func(t *tapView) { t.downs, t.here = 1, false }, ErrReopened, ""},
		"the name is another interface":   {Guest{}, learned, func(t *tapView) { t.index, t.here = 77, false }, ErrReopened, ""},
	} {
		c.g.MAC = hw(macA)
		p := c.g.proof(c.proved)
		now := but(c.proved, c.now)
		again, err := c.g.confirm(p, now)
		if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
			continue
		}
		if c.err == ErrUnproved && errors.Is(err, ErrReopened) {
			t.Errorf("%s: %v in the same life", name, err)
		}
		if err == nil && again.Tap != c.tap {
			t.Errorf("%s: tap %s", name, again.Tap)
		}
	}
}

// A command line says which address is behind which tap, whichever way it is written.
func TestCommandLinesNameTheTapsVM(t *testing.T) {
	split := func(s string) []string { return strings.Fields(s) }
	for name, c := range map[string]struct {
		args []string
		taps map[int]string
		want map[string]string
	}{
		"QEMU by name": {split("qemu -netdev tap,id=n0,ifname=vnet0,script=no -device virtio-net-pci,netdev=n0,mac=" + macA),
			map[int]string{9: "vnet0"}, map[string]string{"vnet0": macA}},
		"QEMU by descriptor": {split("qemu -netdev tap,fd=28,id=hostnet0,vhost=on,vhostfd=30 -device virtio-net-pci,netdev=hostnet0,id=net0,mac=" + macA + ",bus=pci.1 " +
			"-netdev tap,fd=31,id=hostnet1 -device virtio-net-pci,netdev=hostnet1,mac=" + macB),
			map[int]string{28: "vnet0", 31: "vnet1"}, map[string]string{"vnet0": macA, "vnet1": macB}},
		"QEMU, several queues": {split("qemu -netdev tap,fds=28:29,id=n0 -device virtio-net-pci,netdev=n0,mq=on,mac=" + macA),
			map[int]string{28: "vnet0", 29: "vnet0"}, map[string]string{"vnet0": macA}},
		"QEMU in JSON": {split(`qemu -netdev {"type":"tap","fds":"28:29","vhost":true,"vhostfds":"30:31","id":"hostnet0"} -device {"driver":"virtio-net-pci","mq":true,"netdev":"hostnet0","id":"net0","mac":"` + macA + `"}`),
			map[int]string{28: "vnet0", 29: "vnet0"}, map[string]string{"vnet0": macA}},
		"QEMU in one argument":       {split("qemu -nic tap,ifname=tap0,model=virtio-net-pci,mac=" + macA), map[int]string{9: "tap0"}, map[string]string{"tap0": macA}},
		"QEMU chooses the name":      {split("qemu --netdev tap,id=n0 --device virtio-net-pci,netdev=n0,mac=" + macA), map[int]string{9: "tap0"}, map[string]string{"tap0": macA}},
		"QEMU chooses two names":     {split("qemu -netdev tap,id=n0 -device e1000,netdev=n0,mac=" + macA + " -netdev tap,id=n1 -device e1000,netdev=n1,mac=" + macB), map[int]string{9: "tap0", 10: "tap1"}, nil},
		"a NIC plugged in later":     {split("qemu -netdev tap,fd=28,id=n0 -device virtio-net-pci,netdev=n0,mac=" + macA), map[int]string{28: "vnet0", 40: "vnet5"}, map[string]string{"vnet0": macA}},
		"QEMU's own address":         {split("qemu -netdev tap,fd=28,id=n0 -device virtio-net-pci,netdev=n0"), map[int]string{28: "vnet0"}, nil},
		"another netdev":             {split("qemu -netdev user,id=n0 -device virtio-net-pci,netdev=n0,mac=" + macA), map[int]string{28: "vnet0"}, nil},
		"Cloud Hypervisor by name":   {split("cloud-hypervisor --net tap=vmtap0,mac=" + macA + " tap=vmtap1,mac=" + macB + " --cpus boot=2"), map[int]string{9: "vmtap0", 10: "vmtap1"}, map[string]string{"vmtap0": macA, "vmtap1": macB}},
		"Cloud Hypervisor by number": {split("cloud-hypervisor --net fd=[3,4],mac=" + macA), map[int]string{3: "vmtap0", 4: "vmtap0"}, map[string]string{"vmtap0": macA}},
		"cut short":                  {split("qemu -netdev tap,fd=28,id=n0 -device"), map[int]string{28: "vnet0"}, nil},
		"broken JSON":                {split(`qemu -netdev {"type":"tap", -device {"mac"`), map[int]string{28: "vnet0"}, nil},
	} {
		got := matchNICs(parseNICs(c.args), c.taps)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		for tap, mac := range c.want {
			if got[tap].String() != mac {
				t.Errorf("%s: %s is %s, want %s", name, tap, got[tap], mac)
			}
		}
	}
}

// A process of another network namespace says nothing of our taps, and what cannot be read is passed over.
func TestHoldersAreThoseOfOurNamespace(t *testing.T) {
	root := t.TempDir()
	args := strings.Join([]string{"qemu", "-netdev", "tap,id=n0,fd=28", "-device", "virtio-net-pci,netdev=n0,mac=" + macA, ""}, "\x00")
	link := func(to, at string) {
		if err := os.Symlink(to, filepath.Join(root, at)); err != nil {
			t.Fatal(err)
		}
	}
	process := func(pid int, ns, tap string) {
		dir := strconv.Itoa(pid)
		for _, d := range []string{"fd", "fdinfo", "ns"} {
			if err := os.MkdirAll(filepath.Join(root, dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		link(ns, dir+"/ns/net")
		link("/dev/net/tun", dir+"/fd/28")
		for name, text := range map[string]string{"cmdline": args, "fdinfo/28": "pos:\t0\nflags:\t0104002\niff:\t" + tap + "\n"} {
			if err := os.WriteFile(filepath.Join(root, dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	process(100, "net:[1]", "vnet0")
	process(101, "net:[2]", "vnet1")
	if err := os.MkdirAll(filepath.Join(root, "thread-self/ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	link("net:[1]", "thread-self/ns/net")
	if err := os.MkdirAll(filepath.Join(root, "102"), 0o755); err != nil { // ended meanwhile
		t.Fatal(err)
	}
	got := holders(root)
	if len(got) != 1 || len(got["vnet0"]) != 1 || got["vnet0"][0].pid != 100 || got["vnet0"][0].mac.String() != macA {
		t.Errorf("%+v", got)
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("qemu\x00-netdev\x00tap,fd=28,id=n0\x00-device\x00virtio-net-pci,netdev=n0,mac=52:54:00:aa:00:01")
	f.Add("qemu\x00-netdev\x00{\"type\":\"tap\",\"fds\":\"28:29\",\"id\":\"n\"}")
	f.Add("cloud-hypervisor\x00--net\x00tap=t,mac=52:54:00:aa:00:01")
	f.Fuzz(func(t *testing.T, line string) {
		for _, n := range parseNICs(strings.Split(line, "\x00")) {
			if n.mac != nil && len(n.mac) == 0 {
				t.Error("an empty address")
			}
		}
	})
}

// What virsh prints, in the forms of old and new versions.
func TestLibvirtsListNamesTheTap(t *testing.T) {
	const list = ` Interface   Type      Source    Model    MAC
-------------------------------------------------------------
 vnet3       bridge    br0       virtio   52:54:00:aa:00:01
 vnet4       network   my net    e1000    52:54:00:BB:00:02
 -           bridge    br1       virtio   52:54:00:cc:00:03

`
	for _, c := range []struct{ list, mac, tap, says string }{
		{list, macA, "vnet3", ""},
		{list, macB, "vnet4", ""},
		{list, "52:54:00:cc:00:03", "", "start the domain"},
		{list, "52:54:00:dd:00:04", "", macA},
		{"", macA, "", "no interface"},
		{"Interface  Type       Source     Model       MAC\n", macA, "", "no interface"},
	} {
		tap, err := tapOf("db1", c.list, hw(c.mac))
		if tap != c.tap || (err == nil) != (c.says == "") {
			t.Errorf("%s: %q, %v", c.mac, tap, err)
		}
		if err != nil && (!errors.Is(err, ErrLibvirt) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "db1")) {
			t.Errorf("%s: %v, want one that says %q", c.mac, err, c.says)
		}
	}
}
