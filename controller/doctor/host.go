package doctor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
)

// capability is something that the controller needs root's power for. Any of the sets will do.
type capability struct {
	sets [][]uint
	name string
	why  string
}

var capabilities = []capability{
	{[][]uint{{unix.CAP_NET_ADMIN}}, "CAP_NET_ADMIN", "attach programs, switch offloads"},
	{[][]uint{{unix.CAP_NET_RAW}}, "CAP_NET_RAW", "open AF_XDP and packet sockets"},
	{[][]uint{{unix.CAP_SYS_ADMIN}, {unix.CAP_BPF, unix.CAP_PERFMON}}, "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)", "load BPF programs"},
}

func (f *Facts) has(c uint) bool { return f.Caps&(1<<c) != 0 }

func (f *Facts) hasAll(list []uint) bool {
	for _, c := range list {
		if !f.has(c) {
			return false
		}
	}
	return true
}

// lacking are the capabilities that the controller would lack if this process were it.
func (f *Facts) lacking() (names, why []string) {
	for _, c := range capabilities {
		there := false
		for _, set := range c.sets {
			there = there || f.hasAll(set)
		}
		if !there {
			names, why = append(names, c.name), append(why, c.why)
		}
	}
	return names, why
}

func checkPrivileges(f *Facts) Finding {
	const id = "privileges"
	names, why := f.lacking()
	if len(names) == 0 {
		return ok(id, Host, "CAP_NET_ADMIN, CAP_NET_RAW and what BPF needs are there")
	}
	remedy := "run it as root, for example with sudo"
	if f.Root {
		remedy = "give them to the container or the unit (CapabilityBoundingSet= and AmbientCapabilities= of systemd, --cap-add of podman and docker)"
	}
	return Finding{ID: id, Severity: Error, Subject: Host, What: "no " + strings.Join(names, ", no "), Why: "needed to " + strings.Join(why, ", to "), Remedy: remedy}
}

// visitor is checkPrivileges for somebody who only looks: who is not root may well ask about a host that is fine.
func visitor(f *Facts) Finding {
	found := checkPrivileges(f)
	if found.Severity == Error && !f.Root {
		found.Severity, found.What = Note, "you are not root, so some things could not be looked at"
		found.Why, found.Remedy = "the controller itself must be root, or have its capabilities", asRoot
	}
	return found
}

func checkPrograms(f *Facts) Finding {
	const id = "bpf.programs"
	switch {
	case !f.Programs.Seen:
		return unseen(id, Host, "whether the kernel takes the BPF programs was", f.Programs.Err)
	case f.Programs.Err != "":
		return Finding{ID: id, Severity: Error, Subject: Host, What: "the kernel refuses the BPF programs", Why: f.Programs.Err,
			Remedy: "look for what forbids BPF (kernel lockdown, a seccomp profile, a container's user namespace), or install a newer kernel"}
	}
	return ok(id, Host, "the kernel takes the BPF programs")
}

func checkBTF(f *Facts) Finding {
	const id = "kernel.btf"
	if f.BTF {
		return ok(id, Host, "the kernel shows its types (BTF)")
	}
	return Finding{ID: id, Severity: Warning, Subject: Host, What: "/sys/kernel/btf/vmlinux is not there",
		Why:    "VLAN tags that travel beside the frame on a veth cannot be seen, so attach refuses a veth whose peer does that",
		Remedy: "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions have it; in a container, mount /sys"}
}

func checkAFXDP(f *Facts) Finding {
	const id = "kernel.af_xdp"
	switch {
	case !f.AFXDP.Seen:
		return unseen(id, Host, "AF_XDP was", f.AFXDP.Err)
	case f.AFXDP.Err != "":
		return Finding{ID: id, Severity: Error, Subject: Host, What: "no AF_XDP sockets", Why: f.AFXDP.Err,
			Remedy: "use a kernel with CONFIG_XDP_SOCKETS=y; in a container, let its seccomp profile allow the address family AF_XDP"}
	}
	return ok(id, Host, "AF_XDP sockets are there")
}

// checkMemlock compares the limit with the UMEM of what is to be attached (net/xdp/xdp_umem.c xdp_umem_account_pages).
func checkMemlock(f *Facts) Finding {
	const id = "limits.memlock"
	queues, chunk := 1, xsk.SmallChunk
	for _, i := range f.Interfaces {
		if !i.Missing && i.NotUplink == nil {
			one := xsk.ChunkFor(i.MTU, xsk.Grain(i.Driver))
			if one == 0 { // its frames come in several
				one = xsk.LargeChunk
			}
			queues, chunk = max(queues, i.RxQueues), max(chunk, one)
		}
	}
	need := uint64(queues) * xsk.QueueChunks * uint64(chunk)
	switch {
	case f.has(unix.CAP_IPC_LOCK):
		return ok(id, Host, "CAP_IPC_LOCK: locked memory has no limit")
	case f.Memlock >= need:
		return ok(id, Host, "%s of locked memory are allowed", mebibytes(f.Memlock))
	}
	return Finding{ID: id, Severity: Error, Subject: Host, What: fmt.Sprintf("%s of locked memory are allowed, and there is no CAP_IPC_LOCK", mebibytes(f.Memlock)),
		Why:    fmt.Sprintf("the frames' memory needs %s, which is %s for each receive queue", mebibytes(need), mebibytes(need/uint64(queues))),
		Remedy: "ulimit -l unlimited, or in the systemd unit LimitMEMLOCK=infinity"}
}

func mebibytes(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "any amount"
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func checkBPFFS(f *Facts) Finding {
	const id = "bpffs"
	if f.OnBPFFS {
		return ok(id, Host, "%s is on a bpf filesystem", f.BPFFS)
	}
	return Finding{ID: id, Severity: Warning, Subject: Host, What: f.BPFFS + " is not on a bpf filesystem", Why: "flow counters do not survive a restart of the controller",
		Remedy: "mount -t bpf bpf /sys/fs/bpf, or name another place with --bpffs"}
}

func checkTun(f *Facts) Finding {
	const id = "dev.tun"
	if f.Tun {
		return ok(id, Host, "/dev/net/tun is there")
	}
	return Finding{ID: id, Severity: Note, Subject: Host, What: "/dev/net/tun is not there", Why: "there are no VMs on taps, and the demo does not run", Remedy: "modprobe tun"}
}

func checkVhostNet(f *Facts) Finding {
	const id = "dev.vhost_net"
	if f.VhostNet {
		return ok(id, Host, "/dev/vhost-net is there")
	}
	return Finding{ID: id, Severity: Note, Subject: Host, What: "/dev/vhost-net is not there",
		Why: "VMs on taps are fed by batched sends, with one copy more; VMs on vhost-user do not need it", Remedy: "modprobe vhost_net"}
}

func checkKVM(f *Facts) Finding {
	const id = "dev.kvm"
	if f.KVM {
		return ok(id, Host, "/dev/kvm is there")
	}
	return Finding{ID: id, Severity: Note, Subject: Host, What: "/dev/kvm is not there", Why: "VMs are emulated: each of their instructions costs many",
		Remedy: "modprobe kvm_intel (or kvm_amd), and switch virtualisation on in the firmware; in a VM, allow it nested"}
}

// QEMU 7.2 crashes when a guest switches MSI-X on behind vhost-user without KVM: the vector's irqfd, which is KVM's, is not there.
// Seen with every 7.2 that was tried, up to 7.2.22; mended upstream in January 2023, so in 8.0. That older ones have it was not
// established.
var (
	qemuMSIX   = span{Version{7, 2, 0}, Version{8, 0, 0}}
	qemuVector = "give the VM's device vectors=0 (libvirt 8.2.0 and newer: <qemu:override>), or install QEMU 8.0 or newer"
	// libvirt 8.2.0 has <qemu:override>, the only way to say vectors=0 in a domain.
	libvirtOverride = Version{8, 2, 0}
)

func (f *Facts) qemuFault() bool {
	return f.QEMU.Name != "" && !f.QEMU.Version.less(qemuMSIX.from) && f.QEMU.Version.less(qemuMSIX.mended)
}

func checkQEMU(f *Facts) Finding {
	const id = "qemu.msix"
	what := fmt.Sprintf("QEMU %s crashes when a guest without KVM starts its vhost-user NIC", f.QEMU.Version)
	switch {
	case f.QEMU.Name == "":
		return ok(id, Host, "QEMU is not installed, or under a name that is not known")
	case !f.qemuFault():
		return ok(id, Host, "QEMU %s has no fault that is known here", f.QEMU.Version)
	case f.KVM:
		return Finding{ID: id, Severity: Note, Subject: Host, What: what, Why: "VMs with KVM are not touched", Remedy: "for VMs started with -accel tcg: " + qemuVector}
	}
	return Finding{ID: id, Severity: Warning, Subject: Host, What: what, Why: "without /dev/kvm that is every VM on vhost-user", Remedy: qemuVector}
}

func checkLibvirt(f *Facts) Finding {
	const id = "libvirt.override"
	switch v := f.Libvirt.Version; {
	case f.Libvirt.Name == "":
		return ok(id, Host, "libvirt is not installed")
	case f.qemuFault() && !f.KVM && v.less(libvirtOverride):
		return Finding{ID: id, Severity: Warning, Subject: Host, What: fmt.Sprintf("libvirt %s has no <qemu:override>", v), Why: "vectors=0, which this QEMU needs, cannot be said in a domain",
			Remedy: fmt.Sprintf("install libvirt %s or newer, or QEMU %s or newer", libvirtOverride, qemuMSIX.mended)}
	default:
		return ok(id, Host, "libvirt %s has no fault that is known here", v)
	}
}

func checkTaps(f *Facts) (out []Finding) {
	const id = "tap.leftover"
	if !f.TapsLook.good() {
		return []Finding{unseen(id, Host, "what dead controllers left on interfaces was", f.TapsLook.Err)}
	}
	for _, t := range f.Taps {
		found := Finding{ID: id, Severity: Warning, Subject: t.Name, What: "a TC filter of rscctl whose process is gone hangs here", Why: "each frame costs a little more, for nobody",
			Remedy: "rscctl doctor --fix", Fixable: true, tap: t.Index}
		if !t.Sure {
			found.What, found.Fixable, found.tap = "a TC filter of rscctl hangs here whose process is not seen in this PID namespace", false, 0
			found.Why = "either a controller runs outside, or one died and each frame costs a little more"
			found.Remedy = "run rscctl doctor --fix outside the container"
		}
		out = append(out, found)
	}
	if len(out) == 0 {
		out = append(out, ok(id, Host, "no interface carries what a dead controller left"))
	}
	return out
}
