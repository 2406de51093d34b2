package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

var (
	// ErrUnproved is returned when nothing shows that a VM is behind a tap, or something shows that another one is.
	ErrUnproved = errors.New("not proved to be the VM's")
	// ErrReopened is returned with ErrUnproved when the tap was closed and opened since it was proved: by whom is not known.
	ErrReopened = errors.New("it was closed and opened again")
	// ErrAmbiguous is returned when more than one tap is proved to be a VM's.
	ErrAmbiguous = errors.New("more than one tap is proved to be the VM's")
)

// Guest is a VM that a tap is looked for. A tap's name says nothing of who is behind it: libvirt gives vnet0 and vnet1 in
// the order of starts. What tells VMs apart is their address.
type Guest struct {
	MAC    net.HardwareAddr
	Tap    string // the tap that was named for it, or that it was behind last; "" if neither
	Uplink int    // ifindex: where its frames come in
	VLAN   uint16 // and their tag there, 0: none
	Named  string // the tap that libvirt names for it (DomainTap), "" when libvirt was not asked
	Trust  bool   // that Tap is the VM's is the operator's word
	Follow bool   // the VM may have come back behind another tap than Tap
}

// Proof is that a VM is behind a tap. It holds within one life of the tap: one interface, held open without a break.
type Proof struct {
	Tap   string
	Index int    // ifindex
	Downs uint32 // how often its carrier was lost, which is when its last reader closed it
	By    string // what shows it, for people
	view  tapView
}

// Proved is a proof that another process had: it holds as long as the tap's life goes on.
func Proved(tap string, index int, downs uint32, by string) *Proof {
	return &Proof{Tap: tap, Index: index, Downs: downs, By: by, view: tapView{name: tap, index: index, downs: downs}}
}

// tapView is what is known of one tap, as far as it says something of a VM behind it.
type tapView struct {
	name      string
	index     int
	mac       net.HardwareAddr
	downs     uint32
	carrier   bool
	connected bool               // a bridge brings the uplink's frames to it
	bridge    string             // "" when it is in none
	here      bool               // the bridge has the VM's address on it, learned or set
	elsewhere string             // the bridge has the VM's address on this other port, "" if not
	others    []net.HardwareAddr // further addresses that the bridge has learned on it
	held      []holder           // who has it open, as far as that can be read
}

// holder is a process that has a tap open, and the address that its command line gives to the tap's VM.
type holder struct {
	pid int
	mac net.HardwareAddr
}

// verdict is what a view says of a VM.
type verdict struct {
	by      []string // what shows that the VM is behind the tap
	against []string // what shows that it is not
}

func (v verdict) proved() bool { return len(v.by) > 0 && len(v.against) == 0 }

// libvirtMAC tells whether an address is one that libvirt gives to a tap: fe, then the guest's without its first byte
// (src/util/virnetdevtap.c virNetDevTapCreateInBridgePort), so that a bridge never takes it for its own.
func libvirtMAC(tap net.HardwareAddr) bool { return len(tap) == 6 && tap[0] == 0xfe }

// judge weighs what is known. Three things show the VM without the guest having a hand in it: what libvirt says when asked,
// the address that libvirt gave the tap, and the command line of the process that holds it. The fourth is the
// bridge's forwarding entry, which follows the frames that a guest sends: a guest that sends with another's address moves
// it, as it moves what the bridge forwards. So the entry proves only where nothing speaks against it, and an entry at
// another port always counts: frames of the VM come from there.
func (g Guest) judge(t tapView) (v verdict) {
	say := func(list *[]string, format string, args ...any) { *list = append(*list, fmt.Sprintf(format, args...)) }
	sure := false // who gave the tap its name and its address says so
	switch {
	case g.Named == "":
	case g.Named == t.name:
		sure = true
		say(&v.by, "libvirt names it for the domain")
	default:
		say(&v.against, "libvirt names %s for the domain", g.Named)
	}
	trusted := g.Trust && t.name == g.Tap
	if i := slices.IndexFunc(t.held, func(h holder) bool { return bytes.Equal(h.mac, g.MAC) }); i >= 0 {
		say(&v.by, "process %d has it open for %s", t.held[i].pid, g.MAC)
	} else if len(t.held) > 0 && !trusted {
		say(&v.against, "process %d has it open for %s", t.held[0].pid, t.held[0].mac)
	}
	if libvirtMAC(t.mac) {
		switch {
		case bytes.Equal(t.mac[1:], g.MAC[1:]):
			say(&v.by, "its address %s is the one that libvirt makes of the VM's", t.mac)
		case !sure && !trusted:
			// One in 64 random addresses begins like libvirt's. A command line does not outweigh it all the same: a guest
			// that has broken into its own process can write what it likes there.
			say(&v.against, "its address %s is the one that libvirt makes of another VM's", t.mac)
		}
	}
	switch {
	case t.here:
		say(&v.by, "bridge %s has %s on it", t.bridge, g.MAC)
	case t.elsewhere != "":
		say(&v.against, "bridge %s has %s on port %s", t.bridge, g.MAC, t.elsewhere)
	case len(t.others) > 0 && !sure && !trusted:
		say(&v.against, "bridge %s has %s on it and not %s", t.bridge, t.others[0], g.MAC)
	}
	if trusted {
		say(&v.by, "the operator says so")
	}
	return v
}

// lookedFor is what would have been proof, for an error.
const lookedFor = "neither its address (fe: and the VM's tail), nor the command line of the process that has it open, nor the bridge's forwarding entry shows it"

// choose finds the one tap that is proved to be the VM's.
func (g Guest) choose(taps []tapView) (*Proof, error) {
	var proved []tapView
	for _, t := range taps {
		if g.judge(t).proved() {
			proved = append(proved, t)
		}
	}
	// An address may be used once in each network, and a tap that nobody reads may be left from before.
	for _, better := range []func(tapView) bool{
		func(t tapView) bool { return t.connected },
		func(t tapView) bool { return t.carrier },
	} {
		if slices.ContainsFunc(proved, better) {
			proved = slices.DeleteFunc(proved, func(t tapView) bool { return !better(t) })
		}
	}
	named := slices.IndexFunc(taps, func(t tapView) bool { return t.name == g.Tap })
	switch {
	case len(proved) > 1:
		var names []string
		for _, t := range proved {
			names = append(names, fmt.Sprintf("%s (%s)", t.name, strings.Join(g.judge(t).by, ", ")))
		}
		slices.Sort(names)
		return nil, fmt.Errorf("taps for %s: %w: %s: give each VM an address of its own", g.MAC, ErrAmbiguous, strings.Join(names, " and "))
	case len(proved) == 1 && (g.Follow || g.Tap == "" || proved[0].name == g.Tap):
		return g.proof(proved[0]), nil
	case len(proved) == 1 && named >= 0:
		return nil, fmt.Errorf("tap %s: %w: %s is behind tap %s (%s): name that one", g.Tap, ErrUnproved, g.MAC, proved[0].name, strings.Join(g.judge(proved[0]).by, ", "))
	case g.Named != "" && !slices.ContainsFunc(taps, func(t tapView) bool { return t.name == g.Named }):
		return nil, fmt.Errorf("tap %s: %w: libvirt names it for %s, and it is not in this network namespace", g.Named, ErrUnproved, g.MAC)
	case named >= 0:
		return nil, g.unproved(taps[named])
	case g.Tap == "" || g.Follow:
		return nil, fmt.Errorf("taps for %s: %w: %d looked at: start the VM, or let it send a frame", g.MAC, ErrUnproved, len(taps))
	}
	return nil, fmt.Errorf("interface %s: %w", g.Tap, ErrNotTap)
}

func (g Guest) proof(t tapView) *Proof {
	return &Proof{Tap: t.name, Index: t.index, Downs: t.downs, By: strings.Join(g.judge(t).by, ", "), view: t}
}

// unproved says what was found at a tap that is not proved to be the VM's, and what to do.
func (g Guest) unproved(t tapView) error {
	if against := g.judge(t).against; len(against) > 0 {
		return fmt.Errorf("tap %s: %w: %s: name the tap of %s, or let that VM send a frame", t.name, ErrUnproved, strings.Join(against, "; "), g.MAC)
	}
	if !t.carrier && len(t.held) == 0 {
		return fmt.Errorf("tap %s: %w: nobody has it open: start the VM, or vouch for the tap with --trust-tap", t.name, ErrUnproved)
	}
	return fmt.Errorf("tap %s: %w: %s: let the VM send a frame, name its libvirt domain with --domain, or vouch for the tap with --trust-tap",
		t.name, ErrUnproved, lookedFor)
}

// confirm looks at a tap again. Within the same life what was shown stays shown unless something speaks against it: an
// entry of the bridge ages while the VM is silent. A new life starts from nothing, and all must have been read anew.
func (g Guest) confirm(p *Proof, now tapView) (*Proof, error) {
	if same := now.index == p.Index && now.downs == p.Downs; same {
		if g.Named == p.view.name { // libvirt named the interface, which may have been renamed since
			g.Named = now.name
		}
		if g.Trust && g.Tap == p.view.name {
			g.Tap = now.name
		}
		now.held = p.view.held
		if against := g.judge(now).against; len(against) > 0 {
			return p, g.unproved(now)
		}
		again := *p
		again.Tap, again.view = now.name, now
		return &again, nil
	}
	g.Named = "" // said of the life before
	if !g.judge(now).proved() {
		return p, fmt.Errorf("%w: %w", g.unproved(now), ErrReopened)
	}
	return g.proof(now), nil
}
