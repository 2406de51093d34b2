package controller

import (
	"os/exec"
	"strings"
	"testing"
)

// The package map of docs/architecture.md: arrows point down only.
func TestImportsPointDownOnly(t *testing.T) {
	const mod = "github.com/rscctl/rscctl/"
	never := map[string][]string{
		"flowtable":          {"vhost", "bpf", "controller", "cmd"},
		"flowtable/packet":   {"vhost", "bpf", "controller", "cmd", "flowtable/checksum"},
		"flowtable/checksum": {"vhost", "bpf", "controller", "cmd", "flowtable/packet"},
		"vhost":              {"flowtable", "bpf", "controller", "cmd"},
		"vhost/virtio":       {"vhost/guestmem", "vhost/vring", "vhost/user", "flowtable", "controller"},
		"vhost/guestmem":     {"vhost/virtio", "vhost/vring", "vhost/user", "flowtable", "controller"},
		"vhost/vring":        {"vhost/user", "flowtable", "controller"},
		"vhost/unixsock":     {"vhost", "flowtable", "controller", "bpf", "cmd"},
		"vhost/user":         {"flowtable", "controller", "bpf"},
		"vhost/kernel":       {"vhost/user", "flowtable", "bpf", "controller", "cmd"},
		"bpf":                {"vhost", "controller", "cmd"},
		"controller/xsk":     {"flowtable", "vhost", "bpf"},
		"controller/netdev":  {"flowtable/packet", "vhost", "bpf"}, // it completes partial checksums
		"controller/api":     {"flowtable", "vhost", "bpf", "controller/xsk", "controller/netdev"},
		"controller":         {"cmd"},
	}
	for pkg, banned := range never {
		out, err := exec.Command("go", "list", "-deps", mod+pkg).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pkg, err)
		}
		for dep := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
			for _, b := range banned {
				if under(strings.TrimPrefix(dep, mod), b) && strings.HasPrefix(dep, mod) && dep != mod+pkg {
					t.Errorf("%s imports %s, which it must not know", pkg, dep)
				}
			}
		}
	}
}

func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }
