package hook

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// conf has what Proxmox VE writes: a note, other devices, a snapshot and changes that are not in force.
const conf = `#net9: virtio=BC:24:11:00:00:99,bridge=br0
boot: order=scsi0;net0
cores: 2
name: web
net0: virtio=BC:24:11:00:00:01,bridge=br0,firewall=1
net1: model=virtio,macaddr=bc:24:11:00:00:02,bridge=br0,tag=100,queues=4,mtu=1
net12: e1000=BC:24:11:00:00:03,bridge=nowhere,link_down=1
net2: virtio=BC:24:11:00:00:04
netting: virtio=BC:24:11:00:00:05,bridge=br0
scsi0: local-lvm:vm-100-disk-0,size=32G

[PENDING]
net3: virtio=BC:24:11:00:00:06,bridge=br0

[before]
net4: virtio=BC:24:11:00:00:07,bridge=br0
`

func opens(text string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

// The interfaces that are in force are attached when the VM runs, and what of the VM is attached is detached when it has ended, whatever
// its configuration says by then. Other VMs stay.
func TestProxmoxAttachesAndDetaches(t *testing.T) {
	c := &controller{vms: []api.AttachRequest{{VM: "1001", Iface: "eth1"}, {VM: "100i", Iface: "eth1"}, {VM: "100i32", Iface: "eth1"}, {VM: "web", Iface: "eth1"}}}
	h, said := host(c)
	want := map[string][]string{
		PostStart: {
			"attach eth1 100 bc:24:11:00:00:01 vlan 0 tap tap100i0", "attach eth1 100i1 bc:24:11:00:00:02 vlan 100 tap tap100i1",
			"attach nowhere 100i12 bc:24:11:00:00:03 vlan 0 tap tap100i12",
		},
		PostStop: {"detach eth1 100", "detach eth1 100i1", "detach nowhere 100i12"},
	}
	for _, phase := range []string{PreStart, PostStart, PreStop, PostStop} {
		c.asked = nil
		text := conf
		if phase == PostStop {
			text = ""
		}
		h.Proxmox(t.Context(), "100", phase, api.AttachRequest{}, opens(text))
		if !slices.Equal(c.asked, want[phase]) || len(*said) > 0 {
			t.Errorf("%s asked %q, want %q, said %q", phase, c.asked, want[phase], *said)
		}
	}
}

// What is given beside is in every attach: an interface, filters, a policy.
func TestProxmoxTakesWhatIsGivenBeside(t *testing.T) {
	c := &controller{}
	h, _ := host(c)
	ns := int64(20000)
	h.Proxmox(t.Context(), "100", PostStart, api.AttachRequest{Iface: "eth7", Bypass: true, Policy: api.PolicyPatch{HoldNS: &ns}}, opens(conf))
	if len(c.vms) != 3 {
		t.Fatalf("%d attached", len(c.vms))
	}
	for _, r := range c.vms {
		if r.Iface != "eth7" || !r.TrustTap || !r.Bypass || r.Policy.HoldNS == nil || *r.Policy.HoldNS != ns {
			t.Errorf("%+v", r)
		}
	}
}

// What cannot be read is one line, and keeps no other interface from being attached.
func TestProxmoxSaysWhatItCannotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		open  func() (io.ReadCloser, error)
		says  string
		asked int
	}{
		"no file":      {func() (io.ReadCloser, error) { return nil, os.ErrNotExist }, os.ErrNotExist.Error(), 0},
		"no address":   {opens("net0: virtio=soon,bridge=br0\nnet1: virtio=BC:24:11:00:00:02,bridge=br0\n"), "net0", 1},
		"no such VLAN": {opens("net0: virtio=BC:24:11:00:00:02,bridge=br0,tag=4096\n"), "tag", 0},
		"a huge file":  {opens(strings.Repeat("#", maxConfig+1)), "bytes", 0},
		"no bridge":    {opens("net0: virtio=BC:24:11:00:00:02,bridge=br9\n"), "no such", 0},
	} {
		c := &controller{}
		h, said := host(c)
		h.Proxmox(t.Context(), "100", PostStart, api.AttachRequest{}, tc.open)
		if len(*said) != 1 || !strings.Contains((*said)[0], tc.says) || len(c.asked) != tc.asked {
			t.Errorf("%s: said %q, want %q; asked %q", name, *said, tc.says, c.asked)
		}
	}
}

func TestCallsThatNoProxmoxMakes(t *testing.T) {
	for _, tc := range []struct {
		id, phase string
		ok        bool
	}{
		{"100", PreStart, true}, {"999999999", PostStop, true},
		{"99", PreStart, false}, {"../100", PreStart, false}, {"100.conf", PreStart, false}, {"", PreStart, false}, {"1000000000", PreStart, false},
		{"100", "started", false}, {"100", "", false},
	} {
		if err := CheckProxmox(tc.id, tc.phase); (err == nil) != tc.ok {
			t.Errorf("%q %q: %v", tc.id, tc.phase, err)
		}
	}
	if err := CheckProxmox("100", "started"); !errors.Is(err, ErrPhase) {
		t.Errorf("%v", err)
	}
}

// Whatever a configuration is: no panic, and what is attached has an address, a tap and a bridge.
func FuzzProxmox(f *testing.F) {
	f.Add(conf)
	f.Add("net31: virtio=BC:24:11:00:00:01,bridge=,tag=1")
	f.Fuzz(func(t *testing.T, text string) {
		ports, _ := parseProxmox("100", text, api.AttachRequest{})
		for _, p := range ports {
			if p.bridge == "" || p.req.MAC == "" || !strings.HasPrefix(p.req.Tap, "tap100i") || !strings.HasPrefix(p.req.VM, "100") || p.req.VLAN < 0 || p.req.VLAN > 4095 {
				t.Errorf("%+v", p)
			}
		}
	})
}
