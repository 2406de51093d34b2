package doctor

import (
	"fmt"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/controller/xsk"
)

// bondChecks are the checks of a bond that can be an uplink, memberChecks those of a member of one.
var (
	bondChecks   = []func(f *Facts, i *Interface) []Finding{one(checkLink), one(checkForeignXDP), one(checkBridge)}
	memberChecks = []func(f *Facts, i *Interface) []Finding{
		one(checkLink), one(checkMTU), one(checkForeignXDP), one(checkNative), one(checkZeroCopy), one(checkQueues), checkMerging, checkRxVLAN, checkPeer,
	}
)

// ifaceChecks are the checks of an interface that can be an uplink.
var ifaceChecks = []func(f *Facts, i *Interface) []Finding{
	one(checkLink), one(checkMTU), one(checkForeignXDP), one(checkNative), one(checkZeroCopy), one(checkQueues), one(checkBridge),
	checkMerging, checkRxVLAN, checkPeer,
}

func one(check func(f *Facts, i *Interface) Finding) func(f *Facts, i *Interface) []Finding {
	return func(f *Facts, i *Interface) []Finding { return []Finding{check(f, i)} }
}

// examineInterfaces runs the checks of interfaces.
func examineInterfaces(f *Facts) (out []Finding) {
	usable := 0
	for k := range f.Interfaces {
		i := &f.Interfaces[k]
		found := checkUplink(f, i)
		out = append(out, found)
		if found.Severity != OK {
			continue
		}
		usable++
		checks := ifaceChecks
		if i.Bond != nil {
			checks = bondChecks
		} else if i.Of != "" {
			checks = memberChecks
		}
		for _, check := range checks {
			out = append(out, f.onlyNamed(check(f, i))...)
		}
	}
	if usable == 0 && !f.Named {
		out = append(out, Finding{ID: "iface.none", Severity: Warning, Subject: Host, What: "no hardware interface can be attached", Why: "VMs need one that their frames come in by",
			Remedy: "name the interface, if it is a veth: rscctl doctor IFACE ('ip -br link' lists them)"})
	}
	return out
}

// onlyNamed keeps Fix from interfaces that nobody named.
func (f *Facts) onlyNamed(list []Finding) []Finding {
	for k := range list {
		if list[k].change != nil && !f.Named {
			list[k].Fixable, list[k].change = false, nil
		}
	}
	return list
}

func checkUplink(f *Facts, i *Interface) Finding {
	const id = "iface.uplink"
	severity := Note // it was not asked for
	if f.Named {
		severity = Error
	}
	switch {
	case i.Missing:
		return Finding{ID: id, Severity: Error, Subject: i.Name, What: "no such network interface", Why: "nothing can be attached to it", Remedy: "ip -br link lists those of this network namespace"}
	case i.NotUplink != nil:
		return Finding{ID: id, Severity: severity, Subject: i.Name, What: "it cannot be an uplink", Why: i.NotUplink.Why, Remedy: i.NotUplink.Remedy}
	}
	if i.Bond != nil {
		return ok(id, i.Name, "it is a bond of mode %s, attached through its members", i.Bond.Mode)
	}
	if i.Of != "" {
		return ok(id, i.Name, "%s is attached through it: it owns its receive queues (%d in use), driver %s", i.Of, i.RxQueues, i.Driver)
	}
	return ok(id, i.Name, "it owns its receive queues (%d in use), driver %s", i.RxQueues, i.Driver)
}

func checkLink(_ *Facts, i *Interface) Finding {
	const id = "iface.link"
	switch {
	case !i.Up:
		return Finding{ID: id, Severity: Warning, Subject: i.Name, What: "it is down", Why: "no frame comes in", Remedy: "ip link set dev " + i.Name + " up"}
	case !i.Running:
		return Finding{ID: id, Severity: Warning, Subject: i.Name, What: "it has no carrier", Why: "no frame comes in", Remedy: "look at the cable or the switch's port; of a veth, set the other end up"}
	}
	return ok(id, i.Name, "it is up and has a carrier")
}

func checkMTU(f *Facts, i *Interface) Finding {
	const id = "iface.mtu"
	grain := xsk.Grain(i.Driver)
	if chunk := xsk.ChunkFor(i.MTU, grain); chunk != 0 {
		return ok(id, i.Name, "MTU %d fits a UMEM chunk of %d bytes", i.MTU, chunk)
	}
	most, why := xsk.FrameMTU(xsk.MostFrame), "that is the largest whose frames are put together"
	if f.OneChunk != "" {
		most, why = xsk.MaxMTU(xsk.LargeChunk, grain), f.OneChunk
	}
	if i.MTU <= most {
		return ok(id, i.Name, "MTU %d: longer frames come in several UMEM chunks", i.MTU)
	}
	return Finding{ID: id, Severity: Error, Subject: i.Name, What: fmt.Sprintf("MTU %d", i.MTU), Why: fmt.Sprintf("attach refuses more than %d: %s", most, why),
		Remedy: fmt.Sprintf("ip link set dev %s mtu %d", i.Name, most)}
}

func checkForeignXDP(_ *Facts, i *Interface) Finding {
	const id = "iface.xdp"
	switch {
	case !i.XDP.Attached:
		return ok(id, i.Name, "no XDP program is in the way")
	case i.Program == bpf.ProgramName:
		return ok(id, i.Name, "a controller has it already (%s XDP, program %d)", i.XDP.Mode, i.XDP.ProgID)
	}
	return Finding{ID: id, Severity: Error, Subject: i.Name, What: fmt.Sprintf("a foreign XDP program is attached (%s mode, program %d %q)", i.XDP.Mode, i.XDP.ProgID, i.Program),
		Why: "attach does not take another one's place", Remedy: i.Remove + ", once you know whose it is; or use another interface, or its pinned map of sockets (attach --xsk-map)"}
}

func checkNative(_ *Facts, i *Interface) Finding {
	const id = "iface.xdp_native"
	switch {
	case i.Features == nil:
		return Finding{ID: id, Severity: Note, Subject: i.Name, What: "the kernel does not tell whether the driver runs XDP itself", Why: "without, each frame costs more and the kernel's GRO on it ends while a VM is coalesced",
			Remedy: "'rscctl status' shows the mode after attach; kernels from 6.3 tell it before"}
	case !i.Features.Native():
		return Finding{ID: id, Severity: Warning, Subject: i.Name, What: fmt.Sprintf("driver %s does not run XDP itself, as it is set now", i.Driver), Why: "generic XDP costs more per frame and ends the kernel's GRO on it while a VM is coalesced",
			Remedy: "use a NIC whose driver has native XDP" + nativeHint(i)}
	}
	return ok(id, i.Name, "the driver runs XDP itself and redirects to AF_XDP")
}

// nativeHint tells what keeps drivers that could from native XDP (drivers/net/veth.c veth_xdp_set, virtio_net.c virtnet_xdp_set).
func nativeHint(i *Interface) string {
	switch {
	case i.Peer != nil && i.Peer.TxQueues > i.RxQueues:
		return fmt.Sprintf("; of a veth, let it have as many receive queues as the peer sends by: ethtool -L %s rx %d", i.Name, i.Peer.TxQueues)
	case i.Driver == "virtio_net":
		return "; of a virtio NIC, give it guest offloads that can be switched (ctrl_guest_offloads=on) and queues for each CPU"
	}
	return ""
}

func checkZeroCopy(_ *Facts, i *Interface) Finding {
	const id = "iface.zero_copy"
	switch {
	case i.Features == nil:
		return Finding{ID: id, Severity: Note, Subject: i.Name, What: "the kernel does not tell whether the driver has zero-copy AF_XDP", Why: "without, the kernel copies each frame once", Remedy: "'rscctl status' shows it after attach; kernels from 6.3 tell it before"}
	case !i.Features.ZeroCopy():
		return Finding{ID: id, Severity: Note, Subject: i.Name, What: fmt.Sprintf("driver %s has no zero-copy AF_XDP", i.Driver), Why: "the kernel copies each frame once", Remedy: "nothing is wrong; a NIC with zero-copy spares the copy"}
	}
	return ok(id, i.Name, "the driver has zero-copy AF_XDP")
}

func checkQueues(f *Facts, i *Interface) Finding {
	const id = "iface.queues"
	want := min(i.MaxRxQueues, f.CPUs)
	if i.RxQueues == 1 && want > 1 {
		flag := "combined"
		if i.Kind == "veth" {
			flag = "rx"
		}
		return Finding{ID: id, Severity: Note, Subject: i.Name, What: fmt.Sprintf("one receive queue in use of %d, on %d CPUs", i.MaxRxQueues, f.CPUs), Why: "one worker serves all its VMs, on one CPU",
			Remedy: fmt.Sprintf("before attach, where one CPU is not enough: ethtool -L %s %s %d", i.Name, flag, want)}
	}
	return ok(id, i.Name, "%d receive queues, a worker for each", i.RxQueues)
}

func checkBridge(_ *Facts, i *Interface) Finding {
	const id = "iface.bridge"
	if i.Master == "" {
		return ok(id, i.Name, "it is in no bridge")
	}
	return Finding{ID: id, Severity: Note, Subject: i.Name, What: "it is a port of " + i.Master,
		Why:    "VMs on taps in it can be attached as they are; a vhost-user VM on it and the VMs in the bridge do not reach each other",
		Remedy: "give VMs that talk to each other the same way: all --tap, or all --vhost-user"}
}

// offFinding is an offload that is on and that Fix can switch off.
func offFinding(i *Interface, id, feature string, severity Severity, why string) Finding {
	c := hostchange.SwitchOff(i.Name, "", feature, why)
	return Finding{ID: id, Severity: severity, Subject: i.Name, What: feature + " is on", Why: why + ": attach switches it off, and detach on again",
		Remedy: fmt.Sprintf("ethtool -K %s %s off, or leave it to attach", i.Name, feature), Fixable: true, change: &c}
}

// checkMerging looks for offloads by which the NIC merges frames itself.
func checkMerging(_ *Facts, i *Interface) (out []Finding) {
	const why = "the NIC merges frames before XDP sees them"
	for _, m := range []struct{ id, feature string }{{"iface.lro", netdev.LRO}, {"iface.gro_hw", netdev.GROHW}} {
		switch o := i.offload(m.feature); {
		case !o.On:
			out = append(out, ok(m.id, i.Name, "%s is off", m.feature))
		case o.Fixed:
			out = append(out, Finding{ID: m.id, Severity: Warning, Subject: i.Name, What: m.feature + " is on and fixed by the driver", Why: why + ", and such frames may not fit a chunk",
				Remedy: "look into the driver's module parameters and the firmware's settings, or use another NIC"})
		default:
			out = append(out, offFinding(i, m.id, m.feature, Note, why))
		}
	}
	return out
}

func checkRxVLAN(_ *Facts, i *Interface) []Finding {
	const id = "iface.rx_vlan"
	const why = "the NIC takes VLAN tags out of the frame, where XDP does not see them"
	switch o := i.offload(netdev.RxVLAN); {
	case !o.On || i.Kind == "veth": // a veth's tags are the peer's matter
		return []Finding{ok(id, i.Name, "no VLAN tag is taken out of the frames by the NIC")}
	case o.Fixed:
		return []Finding{{ID: id, Severity: Error, Subject: i.Name, What: netdev.RxVLAN + " is on and fixed by the driver", Why: why + ": a tagged frame could enter an untagged VM, so attach refuses",
			Remedy: "use another interface"}}
	default:
		return []Finding{offFinding(i, id, netdev.RxVLAN, Note, why)}
	}
}

// checkPeer looks at what the other end of a veth hands over beside the frame.
func checkPeer(_ *Facts, i *Interface) (out []Finding) {
	const sums, tags, where = "peer.tx_checksum", "peer.tx_vlan", "peer.reach"
	if i.Kind != "veth" {
		return nil
	}
	p := i.Peer
	if p == nil || !p.Reachable {
		out = append(out, Finding{ID: where, Severity: Note, Subject: i.Name, What: "the other end of this veth is in a network namespace without a name", Why: "whether its frames come with whole checksums is not known: those with partial ones are never merged",
			Remedy: "in that namespace: ethtool -K PEER tx off"})
		return append(out, checkTag(i, tags, "in that namespace: ethtool -K PEER tx-vlan-offload off", nil))
	}
	if o := p.TxChecksum; o.On && !o.Fixed {
		c := hostchange.SwitchOff(p.Name, i.Name, netdev.TxChecksum, "its frames would come with partial checksums")
		out = append(out, Finding{ID: sums, Severity: Warning, Subject: i.Name, What: fmt.Sprintf("its peer %s leaves TCP checksums to the receiver (%s is on)", p.Name, netdev.TxChecksum), Why: "such frames are never merged, and the guest drops them",
			Remedy: hostchange.ByHand(&p.Peer, "tx"), Fixable: true, change: &c})
	} else {
		out = append(out, ok(sums, i.Name, "its peer %s sends whole checksums", p.Name))
	}
	c := hostchange.SwitchOff(p.Name, i.Name, netdev.TxVLAN, "its VLAN tags would travel beside the frame")
	return append(out, checkTag(i, tags, hostchange.ByHand(&p.Peer, netdev.TxVLAN), &c))
}

// checkTag judges the VLAN tags of a veth as attach does. change is nil when the peer cannot be changed from here.
func checkTag(i *Interface, id, remedy string, change *state.Change) Finding {
	off := i.Peer != nil && i.Peer.Reachable && !i.Peer.TxVLAN.On
	switch {
	case off:
		return ok(id, i.Name, "its peer leaves VLAN tags in the frames")
	case i.ReadsTag.good():
		return ok(id, i.Name, "VLAN tags that travel beside the frame are seen")
	case !i.ReadsTag.Seen:
		return unseen(id, i.Name, "whether XDP sees VLAN tags that travel beside the frame was", i.ReadsTag.Err)
	}
	return Finding{ID: id, Severity: Error, Subject: i.Name, What: "VLAN tags travel beside the frame, where XDP does not see them on this kernel", Why: "a tagged frame could enter an untagged VM, so attach refuses",
		Remedy: remedy, Fixable: change != nil, change: change}
}
