package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// controller remembers what was asked of it. Test/e2e has a real one.
type controller struct {
	asked   []string
	vms     []api.AttachRequest
	waiting []string
	refuse  error
}

func (c *controller) Config(context.Context) (*api.Config, error) {
	return &api.Config{VMs: c.vms, Waiting: c.waiting}, c.refuse
}

func (c *controller) Attach(_ context.Context, r api.AttachRequest) (*api.AttachResponse, error) {
	way := "tap " + r.Tap
	if r.VhostUser != "" {
		way = "socket " + r.VhostUser
	}
	if r.Connect {
		way += " (connect)"
	}
	c.asked = append(c.asked, fmt.Sprintf("attach %s %s %s vlan %d %s", r.Iface, r.VM, r.MAC, r.VLAN, way))
	c.vms = append(c.vms, r)
	return &api.AttachResponse{}, c.refuse
}

func (c *controller) Detach(_ context.Context, r api.DetachRequest) (*api.DetachResponse, error) {
	c.asked = append(c.asked, "detach "+r.Iface+" "+r.VM)
	return &api.DetachResponse{}, c.refuse
}

// host is one with a bridge br0 on eth1, and one that leads to two interfaces.
func host(c *controller) (h *Host, said *[]string) {
	said = new([]string)
	return &Host{
		Controller: c,
		WaysIn: func(dev string, vlan uint16) ([]netdev.WayIn, error) {
			switch dev {
			case "br0":
				return []netdev.WayIn{{Name: "eth1", VLAN: vlan}}, nil
			case "br2":
				return []netdev.WayIn{{Name: "eth2"}, {Name: "eth3"}}, nil
			case "nowhere":
				return nil, nil
			}
			return nil, netdev.ErrNoDevice
		},
		Failed: func(err error) { *said = append(*said, err.Error()) },
	}, said
}

const (
	tapNIC  = `<interface type='bridge'><mac address='52:54:00:00:00:0a'/><source bridge='br0'/><target dev='vnet0'/></interface>`
	sockNIC = `<interface type='vhostuser'><mac address='52:54:00:00:00:0b'/><source type='unix' path='/nowhere/s' mode='client'/></interface>`
	servNIC = `<interface type='vhostuser'><mac address='52:54:00:00:00:0c'/><source type='unix' path='/nowhere/q' mode='server'/></interface>`
	overNIC = `<interface type='bridge'><mac address='52:54:00:00:00:0d'/><source bridge='br2'/><target dev='vnet3'/></interface>`
	vlanNIC = `<interface type='bridge'><mac address='52:54:00:00:00:0e'/><source bridge='br0'/><vlan><tag id='42'/></vlan><target dev='vnet4'/></interface>`
	onBond  = `<interface type='bridge'><mac address='52:54:00:00:00:0f'/><source bridge='nowhere'/><target dev='vnet5'/></interface>`
)

func domainXML(ports string, nics ...string) string {
	return fmt.Sprintf(`<domain type='kvm'><name>web1</name><metadata><x:ports xmlns:x=%q>%s</x:ports></metadata><devices>%s</devices></domain>`,
		Namespace, ports, strings.Join(nics, ""))
}

// calls are the operations of a VM's life, as a libvirt 9.0 makes them: at start, at libvirtd's restart, at stop.
var calls = []string{"migrate begin", "restore begin", "prepare begin", "start begin", "started begin", "reconnect begin", "attach begin", "stopped end", "release end"}

// What of a domain is attached when, and what of it keeps it from starting.
func TestLibvirtsCallsAttachAndDetach(t *testing.T) {
	for name, tc := range map[string]struct {
		xml   string
		asked map[string][]string // by operation; of any other nothing is asked
		fatal string              // of prepare
		said  map[string]string   // a part of the failure that is told
	}{
		"no port of ours": {xml: `<domain><devices>` + tapNIC + sockNIC + `</devices></domain>`},
		"another's port":  {xml: strings.ReplaceAll(domainXML(`<x:port iface="eth1"/>`, sockNIC), Namespace, "http://other/")},
		"a tap in a bridge": {xml: domainXML(`<x:port/>`, tapNIC), asked: map[string][]string{
			"started begin":   {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"reconnect begin": {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"attach begin":    {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"release end":     {"detach eth1 web1"},
		}},
		"a socket, and a tap": {xml: domainXML(`<x:port mac="52:54:00:00:00:0A"/><x:port mac="52:54:00:00:00:0b" name="web1b" iface="eth9"/>`, tapNIC, sockNIC), asked: map[string][]string{
			"prepare begin":   {"attach eth9 web1b 52:54:00:00:00:0b vlan 0 socket /nowhere/s"},
			"started begin":   {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"reconnect begin": {"attach eth9 web1b 52:54:00:00:00:0b vlan 0 socket /nowhere/s", "attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"attach begin":    {"attach eth9 web1b 52:54:00:00:00:0b vlan 0 socket /nowhere/s", "attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"release end":     {"detach eth9 web1b", "detach eth1 web1"},
		}},
		"a socket that QEMU serves": {xml: domainXML(`<x:port iface="eth1"/>`, servNIC), asked: map[string][]string{
			"prepare begin":   {"attach eth1 web1 52:54:00:00:00:0c vlan 0 socket /nowhere/q (connect)"},
			"reconnect begin": {"attach eth1 web1 52:54:00:00:00:0c vlan 0 socket /nowhere/q (connect)"},
			"attach begin":    {"attach eth1 web1 52:54:00:00:00:0c vlan 0 socket /nowhere/q (connect)"},
			"release end":     {"detach eth1 web1"},
		}},
		"a VLAN of libvirt's": {xml: domainXML(`<x:port/>`, vlanNIC), asked: map[string][]string{
			"started begin":   {"attach eth1 web1 52:54:00:00:00:0e vlan 42 tap vnet4"},
			"reconnect begin": {"attach eth1 web1 52:54:00:00:00:0e vlan 42 tap vnet4"},
			"attach begin":    {"attach eth1 web1 52:54:00:00:00:0e vlan 42 tap vnet4"},
			"release end":     {"detach eth1 web1"},
		}},
		"a bridge that leads to nothing is the controller's to refuse": {xml: domainXML(`<x:port/>`, onBond), asked: map[string][]string{
			"started begin":   {"attach nowhere web1 52:54:00:00:00:0f vlan 0 tap vnet5"},
			"reconnect begin": {"attach nowhere web1 52:54:00:00:00:0f vlan 0 tap vnet5"},
			"attach begin":    {"attach nowhere web1 52:54:00:00:00:0f vlan 0 tap vnet5"},
			"release end":     {"detach nowhere web1"},
		}},
		"attributes with our prefix, and another's": {xml: domainXML(`<x:port x:name="w2" y:name="w3" xmlns:y="http://other/"/>`, tapNIC), asked: map[string][]string{
			"started begin":   {"attach eth1 w2 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"reconnect begin": {"attach eth1 w2 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"attach begin":    {"attach eth1 w2 52:54:00:00:00:0a vlan 0 tap vnet0"},
			"release end":     {"detach eth1 w2"},
		}},
		"an interface without a tap": {xml: domainXML(`<x:port iface="eth1"/>`, strings.ReplaceAll(tapNIC, "<target dev='vnet0'/>", "")), said: map[string]string{
			"started begin": "neither a tap", "reconnect begin": "neither a tap", "attach begin": "neither a tap"}},
		"a bridge that leads to two": {xml: domainXML(`<x:port/>`, overNIC), said: map[string]string{
			"started begin": "eth2 or eth3", "reconnect begin": "eth2 or eth3", "attach begin": "eth2 or eth3"}},
		"which interface?": {xml: domainXML(`<x:port/>`, tapNIC, overNIC), said: map[string]string{
			"prepare begin": "say mac=", "reconnect begin": "say mac=", "attach begin": "say mac="}},
		"no such interface": {xml: domainXML(`<x:port mac="52:54:00:00:00:99"/>`, tapNIC), said: map[string]string{
			"prepare begin": "no interface 52:54:00:00:00:99", "reconnect begin": "no interface", "attach begin": "no interface"}},
		"no address": {xml: domainXML(`<x:port mac="soon"/>`, tapNIC), said: map[string]string{
			"prepare begin": "six bytes", "reconnect begin": "six bytes", "attach begin": "six bytes"}},
		"a word that nobody knows": {xml: domainXML(`<x:port ifcae="eth1"/>`, tapNIC), said: map[string]string{
			"prepare begin": "did you mean iface?", "reconnect begin": "ifcae", "attach begin": "ifcae"}},
		"a value of another kind": {xml: domainXML(`<x:port vlan="many"/>`, tapNIC), said: map[string]string{
			"prepare begin": `vlan="many"`, "reconnect begin": "vlan", "attach begin": "vlan"}},
		"one name twice": {xml: domainXML(`<x:port mac="52:54:00:00:00:0a"/><x:port mac="52:54:00:00:00:0e"/>`, tapNIC, vlanNIC),
			asked: map[string][]string{
				"started begin":   {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
				"reconnect begin": {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
				"attach begin":    {"attach eth1 web1 52:54:00:00:00:0a vlan 0 tap vnet0"},
				"release end":     {"detach eth1 web1"},
			},
			said: map[string]string{"prepare begin": "name=", "reconnect begin": "name=", "attach begin": "name="}},
		"a socket on no interface": {xml: domainXML(`<x:port/>`, sockNIC), fatal: "say iface=", said: map[string]string{
			"reconnect begin": "say iface=", "attach begin": "say iface="}},
		"more ports than there can be": {xml: domainXML(strings.Repeat(`<x:port/>`, maxPorts+1), tapNIC), said: map[string]string{
			"prepare begin": "at most 64", "reconnect begin": "at most 64", "attach begin": "at most 64"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &controller{}
			h, said := host(c)
			for _, call := range calls {
				c.asked, *said = nil, nil
				if call == "reconnect begin" || call == "attach begin" { // as after a crash of the controller that kept nothing
					c.vms = nil
				}
				operation, sub, _ := strings.Cut(call, " ")
				err := h.Libvirt(t.Context(), "web1", operation, sub, strings.NewReader(tc.xml))
				if call == "release end" {
					slices.Sort(c.asked)
					c.asked = slices.Compact(c.asked)
					slices.Sort(tc.asked[call])
				}
				if !slices.Equal(c.asked, tc.asked[call]) {
					t.Errorf("%s asked %q, want %q", call, c.asked, tc.asked[call])
				}
				if fatal := call == "prepare begin" && tc.fatal != ""; (err != nil) != fatal || fatal && !strings.Contains(err.Error(), tc.fatal) {
					t.Errorf("%s: %v, want %q", call, err, tc.fatal)
				}
				if want := tc.said[call]; len(*said) > 1 || want == "" && len(*said) > 0 || !strings.Contains(strings.Join(*said, ""), want) {
					t.Errorf("%s said %q, want %q", call, *said, want)
				}
			}
		})
	}
}

// What a libvirt 9.0 gave to its hook is read: metadata that virsh wrote in both forms.
func TestLibvirtsOwnXMLIsRead(t *testing.T) {
	for file, tc := range map[string]struct{ operation, asked string }{
		"tap.started.xml":       {"started", "attach eth1 vm 52:54:00:12:34:57 vlan 0 tap vnet5"},
		"vhostuser.prepare.xml": {"prepare", "attach eth1 vm 52:54:00:12:34:56 vlan 0 socket /run/rscctl/vu1.sock"},
	} {
		f, err := os.Open(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := &controller{}
		h, said := host(c)
		if err := h.Libvirt(t.Context(), "vm", tc.operation, "begin", f); err != nil || len(*said) > 0 || !slices.Equal(c.asked, []string{tc.asked}) {
			t.Errorf("%s: asked %q, said %q: %v", file, c.asked, *said, err)
		}
	}
}

// A policy in the metadata goes with the attach, and only what of it is said.
func TestAPortsPolicyGoesWithIt(t *testing.T) {
	c := &controller{}
	h, said := host(c)
	xml := domainXML(`<x:port coalesce="off" hold="20us" exclude-ports="22, 443" socket-mode="0600" bypass-filters="true"/>`, tapNIC)
	if err := h.Libvirt(t.Context(), "web1", "started", "begin", strings.NewReader(xml)); err != nil || len(*said) > 0 || len(c.vms) != 1 {
		t.Fatalf("%v %q %d", err, *said, len(c.vms))
	}
	r := c.vms[0]
	p := r.Policy
	if p.Coalesce == nil || *p.Coalesce || p.HoldNS == nil || *p.HoldNS != 20000 || p.ExcludePorts == nil || !slices.Equal(*p.ExcludePorts, []uint16{22, 443}) ||
		p.IPv4 != nil || p.MaxBytes != nil || r.SocketMode != "0600" || !r.Bypass {
		t.Errorf("%+v %+v", r, p)
	}
}

// When libvirt is started anew what is served is left alone, and what waits or is missing is attached.
func TestAReconnectLeavesAloneWhatIsServed(t *testing.T) {
	for name, tc := range map[string]struct {
		waiting []string
		asked   int
	}{"served": {nil, 0}, "waits": {[]string{"web1"}, 1}} {
		c := &controller{vms: []api.AttachRequest{{VM: "web1", Iface: "eth1"}}, waiting: tc.waiting}
		h, said := host(c)
		if err := h.Libvirt(t.Context(), "web1", "reconnect", "begin", strings.NewReader(domainXML(`<x:port/>`, tapNIC))); err != nil || len(*said) > 0 || len(c.asked) != tc.asked {
			t.Errorf("%s: asked %q, said %q: %v", name, c.asked, *said, err)
		}
	}
}

// A domain that has another's name for a port, as a clone has, or its address, too, changes nothing of the VM that is served, neither when it
// starts nor when it is released.
func TestADomainCannotTouchAnothersVM(t *testing.T) {
	ofTap := api.AttachRequest{VM: "web1", Iface: "eth1", MAC: "52-54-00-00-00-0A", Tap: "vnet0"}
	ofSocket := api.AttachRequest{VM: "web1", Iface: "eth1", MAC: "52:54:00:00:00:0b", VhostUser: "/nowhere/s"}
	for name, tc := range map[string]struct {
		served api.AttachRequest
		nic    string
		starts string // what prepare or started say; "": nothing is attached, or what there is in the same way
		ends   bool   // release detaches
	}{
		"the same tap":                  {ofTap, tapNIC, "", true},
		"the same socket":               {ofSocket, sockNIC, "", true},
		"another tap":                   {ofTap, strings.Replace(tapNIC, "vnet0", "vnet7", 1), "tap vnet0, and was left alone: 'rscctl detach eth1 --vm web1'", false},
		"another socket":                {ofSocket, strings.Replace(sockNIC, "/nowhere/s", "/nowhere/mine", 1), "socket /nowhere/s, and was left alone", false},
		"a socket for a tap":            {ofTap, strings.Replace(sockNIC, "0b'", "0a'", 1), "tap vnet0, and was left alone", false},
		"no tap yet":                    {ofTap, strings.Replace(tapNIC, "<target dev='vnet0'/>", "", 1), "neither a tap", false},
		"another address, a reused tap": {ofTap, strings.Replace(tapNIC, "0a'", "1a'", 1), "", false}, // the controller refuses it
	} {
		t.Run(name, func(t *testing.T) {
			c := &controller{vms: []api.AttachRequest{tc.served}}
			h, said := host(c)
			xml := domainXML(`<x:port iface="eth1"/>`, tc.nic)
			var words []string
			for _, operation := range []string{"prepare", "started"} {
				if err := h.Libvirt(t.Context(), "web1", operation, "begin", strings.NewReader(xml)); err != nil {
					words = append(words, err.Error())
				}
			}
			words = append(words, *said...)
			if attached := len(c.asked) > 0; attached != (tc.starts == "") || !strings.Contains(strings.Join(words, "\n"), tc.starts) {
				t.Errorf("the start asked %q and said %q, want %q", c.asked, words, tc.starts)
			}
			c.vms, c.asked = []api.AttachRequest{tc.served}, nil
			if err := h.Libvirt(t.Context(), "web1", "release", "end", strings.NewReader(xml)); err != nil || (len(c.asked) > 0) != tc.ends {
				t.Errorf("the release asked %q: %v", c.asked, err)
			}
		})
	}
}

// An input that has no end, such as a terminal, keeps no call from ending.
func TestAnInputWithoutAnEndIsGivenUp(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	c := &controller{}
	h, said := host(c)
	done := make(chan error)
	go func() {
		err := h.Libvirt(ctx, "web1", "reconnect", "begin", r)
		h.Proxmox(ctx, "100", PostStart, api.AttachRequest{}, func() (io.ReadCloser, error) { return r, nil })
		done <- err
	}()
	if _, err := io.WriteString(w, "<domain>"); err != nil { // it is reading
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil || len(*said) != 2 || !strings.Contains((*said)[0], "no end yet") || !strings.Contains((*said)[1], "no end yet") || len(c.asked) > 0 {
			t.Errorf("%v, said %q, asked %q", err, *said, c.asked)
		}
	case <-time.After(netnstest.Patience(10 * time.Second)):
		t.Fatal("it waits on")
	}
}

// A refusal of the controller keeps a domain on vhost-user from starting, with its words, and no other; nothing else ends one.
func TestOnlyAMissingSocketIsFatal(t *testing.T) {
	refusal := errors.New("attach: interface eth1: refused in words")
	for name, tc := range map[string]struct {
		nic, operation string
		fatal          bool
	}{
		"a socket at prepare":   {sockNIC, "prepare", true},
		"a socket at reconnect": {sockNIC, "reconnect", false},
		"a tap at started":      {tapNIC, "started", false},
	} {
		c := &controller{refuse: refusal}
		h, said := host(c)
		err := h.Libvirt(t.Context(), "web1", tc.operation, "begin", strings.NewReader(domainXML(`<x:port iface="eth1"/>`, tc.nic)))
		text := strings.Join(*said, "")
		if err != nil {
			text += err.Error()
		}
		if (err != nil) != tc.fatal || !strings.Contains(text, "VM web1: "+refusal.Error()) {
			t.Errorf("%s: %v, said %q", name, err, *said)
		}
	}
	// A port that is wrong does not matter to a domain whose socket somebody else serves.
	served := strings.Replace(sockNIC, "/nowhere/s", t.TempDir(), 1)
	h, said := host(&controller{})
	if err := h.Libvirt(t.Context(), "web1", "prepare", "begin", strings.NewReader(domainXML(`<x:port wrong="1"/>`, served))); err != nil || len(*said) != 1 {
		t.Errorf("%v, said %q", err, *said)
	}
}

// What cannot be read is one line, keeps nothing from starting, and is read to its end.
func TestXMLThatCannotBeRead(t *testing.T) {
	for name, tc := range map[string]struct{ in, says string }{
		"nothing":          {"", "EOF"},
		"cut short":        {domainXML(`<x:port/>`, tapNIC)[:120], "syntax error"},
		"another document": {"<network/>", "domain"},
		"an entity":        {`<!DOCTYPE d [<!ENTITY a "b">]><domain><name>&a;</name></domain>`, "entity"},
		"too much":         {"<domain>" + strings.Repeat(" ", maxXML), "more than 4194304 bytes"},
		"deep":             {strings.Repeat("<domain>", 100000), "XML"},
		"no text":          {"\xff\xfe<domain>\x00", "XML"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &controller{}
			h, said := host(c)
			in := strings.NewReader(tc.in)
			if err := h.Libvirt(t.Context(), "web1", "prepare", "begin", in); err != nil || len(*said) != 1 || !strings.Contains((*said)[0], tc.says) {
				t.Errorf("%v, said %q, want %q", err, *said, tc.says)
			}
			if _, err := in.ReadByte(); err != io.EOF || len(c.asked) > 0 {
				t.Errorf("%d bytes are left, asked %q", in.Len(), c.asked)
			}
		})
	}
}

// Whatever a domain's XML is: no panic, no failure without words, and no socket or tap that is not in it.
func FuzzLibvirt(f *testing.F) {
	for _, nic := range []string{tapNIC, sockNIC, vlanNIC} {
		f.Add([]byte(domainXML(`<x:port iface="eth1" hold="1us" exclude-ports="1"/>`, nic)), 0)
	}
	files, _ := filepath.Glob("testdata/*.xml")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 1)
	}
	f.Fuzz(func(t *testing.T, text []byte, which int) {
		c := &controller{}
		h, said := host(c)
		operation, sub, _ := strings.Cut(calls[uint(which)%uint(len(calls))], " ")
		err := h.Libvirt(t.Context(), "web1", operation, sub, strings.NewReader(string(text)))
		if err != nil {
			*said = append(*said, err.Error())
		}
		if slices.Contains(*said, "") {
			t.Error("a failure without words")
		}
		if len(c.vms) > maxPorts {
			t.Errorf("%d ports", len(c.vms))
		}
	})
}
