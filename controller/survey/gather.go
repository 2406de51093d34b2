package survey

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rscctl/rscctl/controller/doctor"
	"github.com/rscctl/rscctl/controller/netdev"
)

// Options say what is looked at.
type Options struct {
	Interfaces []string // none: all hardware
	BPFFS      string   // where a controller would pin
	Version    string   // of rscctl
}

// Report is what was seen. Nothing in it has been through the Scrubber: see Write.
type Report struct {
	Version  string
	Machine  Machine
	Host     *doctor.Facts
	NICs     []NIC
	Findings []doctor.Finding
	VMs      int // processes that run a VM
	Speed    Speed
	Demo     []byte // the demo's JSON, nil: it did not run
	NoDemo   string // why
}

// NIC is an interface beside what doctor has of it.
type NIC struct {
	doctor.Interface
	Speed string // Mbit/s, "" where it is not told
	PCI   string // vendor:device, "" of what is not on a PCI bus
	GRO   string // "on" or "off", "" where it is not told
	TSO   string // likewise
}

// Gather looks at the machine, for a second or two. ctx bounds the programs that are asked for their version.
func Gather(ctx context.Context, o Options) (*Report, error) {
	r := &Report{Version: o.Version, Machine: machine("/")}
	list := o.Interfaces
	if len(list) == 0 {
		list = []string{""}
	}
	for _, name := range list {
		f, err := doctor.Gather(ctx, name, o.BPFFS)
		if err != nil {
			return nil, err
		}
		if r.Host == nil {
			r.Host = f
		}
		for _, i := range f.Interfaces {
			if i.Missing {
				return nil, fmt.Errorf("interface %s: %w: 'ip -br link' lists them", i.Name, netdev.ErrNoDevice)
			}
			r.NICs = append(r.NICs, nic(i))
		}
		for _, found := range doctor.Examine(f) {
			if r.Host == f || found.Subject != doctor.Host { // the host is the same each time
				r.Findings = append(r.Findings, found)
			}
		}
	}
	r.VMs = len(guests())
	r.Speed = measure()
	return r, ctx.Err()
}

func nic(i doctor.Interface) NIC {
	sys := filepath.Join("/sys/class/net", i.Name)
	n := NIC{Interface: i, Speed: word(sys, "speed")}
	if strings.HasPrefix(n.Speed, "-") { // not known
		n.Speed = ""
	}
	if vendor := word(sys, "device/vendor"); vendor != "" {
		n.PCI = strings.TrimPrefix(vendor, "0x") + ":" + strings.TrimPrefix(word(sys, "device/device"), "0x")
	}
	_ = netdev.With(func(h *netdev.Handle) error { // it may be gone by now
		for feature, to := range map[string]*string{"generic-receive-offload": &n.GRO, "tcp-segmentation-offload": &n.TSO} {
			if on, _, err := h.Offload(i.Name, feature); err == nil {
				*to = onOff(on)
			}
		}
		return nil
	})
	return n
}

// Machine is what /proc, /sys and /etc tell of a machine. A text is "" where it is not told.
type Machine struct {
	Arch         string
	Distribution string
	CPU          string
	CPUs         int // that this process may use
	Flags        []string
	Governor     string
	Nodes        int    // of memory
	MemoryMiB    uint64 // 0: not told
	HugePages    string
	Virtual      bool // a hypervisor is below
	Vendor       string
	Container    bool
	JIT          string
}

// told are the flags of the processor that matter to the data path.
var told = []string{"avx2", "avx512f", "vmx", "svm", "asimd"}

func machine(root string) Machine {
	m := Machine{Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Governor: word(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), JIT: word(root, "proc/sys/net/core/bpf_jit_enable")}
	m.Distribution = strings.Trim(fields(root, "etc/os-release", "=")["PRETTY_NAME"], `"`)
	cpu := fields(root, "proc/cpuinfo", ":")
	m.CPU = cpu["model name"]
	if m.CPU == "" && cpu["CPU part"] != "" {
		m.CPU = "implementer " + cpu["CPU implementer"] + ", part " + cpu["CPU part"]
	}
	for _, flag := range strings.Fields(cpu["flags"] + " " + cpu["Features"]) {
		if flag == "hypervisor" {
			m.Virtual = true
		}
		for _, t := range told {
			if flag == t {
				m.Flags = append(m.Flags, t)
			}
		}
	}
	m.Vendor = word(root, "sys/class/dmi/id/sys_vendor")
	nodes, _ := filepath.Glob(filepath.Join(root, "sys/devices/system/node/node[0-9]*"))
	m.Nodes = len(nodes)
	memory := fields(root, "proc/meminfo", ":")
	var kib uint64
	if n, _ := fmt.Sscanf(memory["MemTotal"], "%d kB", &kib); n == 1 {
		m.MemoryMiB = kib >> 10
	}
	if total := memory["HugePages_Total"]; total != "" {
		m.HugePages = total + " of " + memory["Hugepagesize"]
	}
	for _, mark := range []string{"run/systemd/container", ".dockerenv", "run/.containerenv"} {
		if _, err := os.Stat(filepath.Join(root, mark)); err == nil {
			m.Container = true
		}
	}
	return m
}

// word is the text of a small file, "" where there is none.
func word(dir, file string) string {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// fields reads lines "name: value"; of two with a name, the first counts.
func fields(root, file, sign string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(word(root, file)) {
		name, value, found := strings.Cut(line, sign)
		name = strings.TrimSpace(name)
		if _, twice := out[name]; found && !twice {
			out[name] = strings.TrimSpace(value)
		}
	}
	return out
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
