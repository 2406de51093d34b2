package netdev

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const procRoot = "/proc"

// maxCmdline bounds what is read of one process's command line, in bytes. A QEMU of libvirt has some 10 KiB.
const maxCmdline = 1 << 20

// holders finds the processes of this network namespace that have taps open, by the tap's name, as far as their command
// lines say which VM is behind it: QEMU's -netdev and -device (or -nic), as text or JSON, and Cloud Hypervisor's --net. A
// device that was plugged in later is on no command line. What cannot be read is not there.
func holders(root string) map[string][]holder {
	out := map[string][]holder{}
	pids, err := filepath.Glob(filepath.Join(root, "[0-9]*"))
	if err != nil {
		return out
	}
	own, _ := os.Readlink(filepath.Join(root, "thread-self/ns/net"))
	for _, dir := range pids {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(b) > maxCmdline || !bytes.Contains(b, []byte("mac")) {
			continue
		}
		nics := parseNICs(strings.Split(string(b), "\x00"))
		if len(nics) == 0 {
			continue
		}
		// A tap's name says nothing in another namespace.
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || ns != own {
			continue
		}
		for tap, mac := range matchNICs(nics, openTaps(dir)) {
			out[tap] = append(out[tap], holder{pid, mac})
		}
	}
	return out
}

// openTaps are a process's descriptors of tun devices, with the names of their interfaces ("iff:" of fdinfo, drivers/net/tun.c
// tun_chr_show_fdinfo).
func openTaps(dir string) map[int]string {
	out := map[int]string{}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return out
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink(filepath.Join(dir, "fd", e.Name())); err != nil || !strings.HasPrefix(to, "/dev/net/tun") {
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", e.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "iff:"); ok {
				out[fd] = strings.TrimSpace(name)
			}
		}
	}
	return out
}

// nic is one network device of a command line: how its tap is named there, and its address, nil when it has none.
type nic struct {
	fds    []int
	ifname string
	mac    net.HardwareAddr
}

// matchNICs joins devices and open taps: by descriptor, by name, or because there is one of each.
func matchNICs(nics []nic, taps map[int]string) map[string]net.HardwareAddr {
	out := map[string]net.HardwareAddr{}
	names := map[string]bool{}
	for _, name := range taps {
		names[name] = true
	}
	for _, n := range nics {
		if n.mac == nil {
			continue
		}
		for _, fd := range n.fds {
			if name, ok := taps[fd]; ok {
				out[name] = n.mac
			}
		}
		if names[n.ifname] || len(nics) == 1 && len(names) == 1 && n.ifname == "" && len(n.fds) == 0 {
			for name := range names {
				if n.ifname == "" || name == n.ifname {
					out[name] = n.mac
				}
			}
		}
	}
	return out
}

// parseNICs finds the devices with a tap on a command line.
func parseNICs(args []string) (out []nic) {
	netdevs, macs := map[string]nic{}, map[string]net.HardwareAddr{}
	for i, arg := range args {
		name := strings.TrimLeft(arg, "-")
		if name == arg || i+1 >= len(args) {
			continue
		}
		switch o := parseOptions(args[i+1]); name {
		case "netdev":
			if o["type"] == "tap" {
				netdevs[o["id"]] = o.nic()
			}
		case "device":
			if mac, err := net.ParseMAC(o["mac"]); err == nil && o["netdev"] != "" {
				macs[o["netdev"]] = mac
			}
		case "nic":
			if o["type"] == "tap" {
				out = append(out, o.nic())
			}
		case "net": // Cloud Hypervisor: as many values as there are devices
			for _, v := range args[i+1:] {
				if strings.HasPrefix(v, "-") {
					break
				}
				if o := parseOptions(v); o["mac"] != "" && (o["tap"] != "" || o["fd"] != "") {
					n := o.nic()
					n.ifname = o["tap"]
					out = append(out, n)
				}
			}
		}
	}
	for id, n := range netdevs {
		n.mac = macs[id]
		out = append(out, n)
	}
	return out
}

// options are the settings of one argument. The first may stand without its name, which is "type".
type options map[string]string

// parseOptions reads QEMU's key=value,... (a comma in a value is written twice) or its JSON.
func parseOptions(s string) options {
	o := options{}
	if strings.HasPrefix(s, "{") {
		var fields map[string]any
		if json.Unmarshal([]byte(s), &fields) == nil {
			for k, v := range fields {
				o[k] = fmt.Sprint(v)
			}
		}
		return o
	}
	const comma = "\x00" // which no argument holds
	for i, part := range strings.Split(strings.ReplaceAll(s, ",,", comma), ",") {
		k, v, found := strings.Cut(part, "=")
		if !found && i == 0 {
			k, v = "type", k
		}
		o[k] = strings.ReplaceAll(v, comma, ",")
	}
	return o
}

func (o options) nic() nic {
	n := nic{ifname: o["ifname"]}
	n.mac, _ = net.ParseMAC(o["mac"])
	for fd := range strings.FieldsFuncSeq(o["fd"]+":"+o["fds"], func(r rune) bool { return r == ':' || r == '[' || r == ']' || r == ',' }) {
		if v, err := strconv.Atoi(fd); err == nil {
			n.fds = append(n.fds, v)
		}
	}
	return n
}
