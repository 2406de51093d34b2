package survey

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/netns"
)

// Names are the names that things of this machine have, each with the word that is to stand for it: host, users, VMs, interfaces of this
// network namespace and of the peers of veths, named namespaces. nics are numbered in their order; more are names that the caller knows.
func Names(nics []NIC, more map[string]string) map[string]string {
	out := map[string]string{}
	add := func(name, word string) {
		if _, known := out[name]; name != "" && !known {
			out[name] = word
		}
	}
	for i, n := range nics {
		add(n.Name, fmt.Sprintf("nic%d", i))
		if n.Peer != nil {
			add(n.Peer.Name, fmt.Sprintf("nic%d-peer", i))
		}
	}
	for name, word := range more {
		add(name, word)
	}
	for _, name := range guests() {
		add(name, "VM")
	}
	if host, err := os.Hostname(); err == nil {
		add(host, "HOST")
		short, domain, _ := strings.Cut(host, ".")
		add(short, "HOST")
		add(domain, "DOMAIN")
	}
	for _, key := range []string{"USER", "LOGNAME", "SUDO_USER"} {
		add(os.Getenv(key), "USER")
	}
	add(strings.TrimSpace(os.Getenv("HOME")), "HOME")
	spaces, _ := filepath.Glob(netns.Dir + "/*")
	for i, path := range spaces {
		add(filepath.Base(path), fmt.Sprintf("netns%d", i))
	}
	var links []netdev.Link
	_ = netdev.With(func(h *netdev.Handle) (err error) { // Gather has said what is wrong with netlink
		links, err = h.Links()
		return err
	})
	for _, l := range links {
		add(l.Name, fmt.Sprintf("if%d", l.Index))
	}
	return out
}

// guests are the names of the VMs that processes of this machine run, by their command lines: "" for one without.
func guests() (names []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		words := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		program := filepath.Base(words[0])
		if !strings.HasPrefix(program, "qemu-system-") && program != "qemu-kvm" && program != "kvm" && program != "cloud-hypervisor" && program != "firecracker" {
			continue
		}
		names = append(names, guestName(words))
	}
	return names
}

// guestName reads -name NAME, and -name guest=NAME,debug-threads=on.
func guestName(words []string) string {
	for i, w := range words[:len(words)-1] {
		if w != "-name" && w != "--name" {
			continue
		}
		for part := range strings.SplitSeq(words[i+1], ",") {
			if name, found := strings.CutPrefix(part, "guest="); found {
				return name
			}
		}
		name, _, _ := strings.Cut(words[i+1], ",")
		return name
	}
	return ""
}
