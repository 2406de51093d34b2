package doctor

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Version is a version of three numbers.
type Version [3]int

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v Version) less(o Version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

var versionText = regexp.MustCompile(`(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?`)

// parseVersion finds the first version in a text.
func parseVersion(text string) (v Version, found bool) {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // a missing third number is 0
	}
	return v, true
}

// Kernel is how the running kernel calls itself.
type Kernel struct {
	Release   string // uname -r
	Build     string // uname -v
	Signature string // /proc/version_signature, which Ubuntu has
}

// upstream is the version of Linux that the kernel was made of. Debian and Ubuntu keep the release's number over many of
// them ("6.1.0-25-amd64" is 6.1.106) and say the true one elsewhere.
func (k Kernel) upstream() (Version, bool) {
	if _, text, found := strings.Cut(k.Build, "Debian "); found {
		if v, ok := parseVersion(text); ok {
			return v, true
		}
	}
	if fields := strings.Fields(k.Signature); len(fields) > 0 {
		if v, ok := parseVersion(fields[len(fields)-1]); ok {
			return v, true
		}
	}
	return parseVersion(k.Release)
}

// oldest is the first kernel that takes the programs: their flow rows gather the TCP flags by an atomic OR (Linux 5.12,
// kernel/bpf/verifier.c check_atomic). XDP links need 5.9, inner maps of another size than their prototype's 5.10.
var oldest = Version{5, 12, 0}

func checkKernel(f *Facts) Finding {
	const id = "kernel.version"
	v, known := f.Kernel.upstream()
	switch {
	case !known:
		return Finding{ID: id, Severity: Note, Subject: Host, What: fmt.Sprintf("kernel release %q has no version that can be read", f.Kernel.Release),
			Why: fmt.Sprintf("Linux %d.%d or newer is needed", oldest[0], oldest[1]), Remedy: "compare it by hand: uname -a"}
	case !v.less(oldest):
		return ok(id, Host, "Linux %s", v)
	case f.Programs.good(): // a distribution's kernel with newer parts
		return Finding{ID: id, Severity: Warning, Subject: Host, What: fmt.Sprintf("Linux %s takes the BPF programs, though %d.%d was the first that does", v, oldest[0], oldest[1]),
			Why: "nobody has tried rscctl with such a kernel", Remedy: fmt.Sprintf("install Linux %d.%d or newer, and reboot", oldest[0], oldest[1])}
	}
	return Finding{ID: id, Severity: Error, Subject: Host, What: fmt.Sprintf("Linux %s", v),
		Why:    fmt.Sprintf("the BPF programs need atomic operations that came with %d.%d", oldest[0], oldest[1]),
		Remedy: fmt.Sprintf("install Linux %d.%d or newer, and reboot", oldest[0], oldest[1])}
}

// span is kernels from one version up to, but not including, the one that mended the fault.
type span struct{ from, mended Version }

// fault is a fault of kernels.
type fault struct {
	id        string
	severity  Severity
	in        []span
	what, why string
	fine      string // what is so without it
	also      string // another remedy than a kernel
}

var faults = []fault{
	{
		// Linux e269d79c7d35 ("net: missing check virtio") refuses good GSO frames behind a virtio-net header. It came to 6.1 with .103,
		// to 6.6 with .44; 89add40066f9 ("net: drop bad gso csum_start and offset in virtio_net_hdr") mended it in 6.11, in 6.1.111, 6.6.46
		// and 6.10.5. Seen by others: lf-edge/eve pull 4389, gardenlinux/gardenlinux issue 2278, tailscale/tailscale issue 13041 (which saw it
		// with 6.10.3: that it was in 6.10.0 to .2 was not established, they are named because nobody need run them).
		id: "kernel.superframes", severity: Error,
		in:   []span{{Version{6, 1, 103}, Version{6, 1, 111}}, {Version{6, 6, 44}, Version{6, 6, 46}}, {Version{6, 10, 0}, Version{6, 10, 5}}},
		what: "refuses good frames larger than the MTU behind a virtio-net header",
		why:  "superframes to taps and large frames of guests are lost, and bulk TCP crawls (guests that run such a kernel have the fault as well)",
		fine: "takes frames larger than the MTU",
	},
	{
		// Linux b10b446 (7.0-rc1) computes wrong UDP headers when a GSO frame's last segment is as long as the others; 78effd8 and 5f17ae0
		// mended it, in 7.1.5. Seen by others: tailscale/tailscale pull 19918 and issue 19777.
		id: "kernel.udp_gso", severity: Warning,
		in:   []span{{Version{7, 0, 0}, Version{7, 1, 5}}},
		what: "spoils UDP GSO frames whose last segment is as long as the others, with some drivers",
		why:  "QUIC and WireGuard of guests lose packets; TCP is not touched",
		fine: "cuts UDP GSO frames as it should",
		also: ", or until then: ethtool -K IFACE tx-udp-segmentation off",
	},
}

// oldestUSO is the first kernel with UDP superframes behind a virtio-net header: 860b7f27b8f7 ("linux/virtio_net.h: Support USO offload in vnet
// header") and 399e0827642f ("driver/net/tun: Added features for USO").
var oldestUSO = Version{6, 2, 0}

func checkUSO(f *Facts) Finding {
	const id = "kernel.uso"
	v, known := f.Kernel.upstream()
	switch {
	case !known:
		return Finding{ID: id, Severity: Note, Subject: Host, What: "whether taps and packet sockets take UDP superframes is not known", Why: "the kernel's version cannot be read", Remedy: "compare it by hand: uname -a"}
	case v.less(oldestUSO):
		return Finding{ID: id, Severity: Note, Subject: Host, What: fmt.Sprintf("Linux %s: taps and packet sockets take no UDP superframes", v),
			Why:    "UDP for VMs on their own taps is not merged, and what guests on vhost-user send in trains is cut by rscctl instead of the interface",
			Remedy: "install Linux 6.2 or newer, and reboot"}
	}
	return ok(id, Host, "Linux %s takes UDP superframes to taps and packet sockets", v)
}

func checkFault(f *Facts, one fault) Finding {
	v, known := f.Kernel.upstream()
	if !known {
		return Finding{ID: one.id, Severity: Note, Subject: Host, What: fmt.Sprintf("whether the kernel %s is not known", one.what), Why: "its version cannot be read", Remedy: "compare it by hand: uname -a"}
	}
	for _, s := range one.in {
		if !v.less(s.from) && v.less(s.mended) {
			return Finding{ID: one.id, Severity: one.severity, Subject: Host, What: fmt.Sprintf("Linux %s %s", v, one.what), Why: one.why,
				Remedy: fmt.Sprintf("install Linux %s or newer, and reboot%s", s.mended, one.also)}
		}
	}
	return ok(one.id, Host, "Linux %s %s", v, one.fine)
}
