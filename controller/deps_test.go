package controller

import (
	"os/exec"
	"path"
	"strings"
	"testing"
)

// The package map of docs/architecture.md: arrows point down only. Each ban says why.
func TestImportsPointDownOnly(t *testing.T) {
	const (
		mod  = "github.com/rscctl/rscctl/"
		pure = "it works on bytes and knows no I/O"
		side = "flowtable and vhost do not know one another: the data path joins them"
		up   = "arrows point down only"
		wire = "it moves frames and knows nothing of who decided what"
	)
	type ban struct {
		path, why string
	}
	bans := func(why string, paths ...string) (out []ban) {
		for _, p := range paths {
			out = append(out, ban{p, why})
		}
		return out
	}
	never := map[string][]ban{
		"flowtable":          append(bans(side, "vhost"), bans(pure, "bpf", "controller", "cmd", "net", "encoding/json")...),
		"flowtable/packet":   append(bans(pure, "vhost", "bpf", "controller", "cmd"), ban{"flowtable/checksum", "a parser reads offsets and believes no sum"}),
		"flowtable/checksum": append(bans(pure, "vhost", "bpf", "controller", "cmd"), ban{"flowtable/packet", "a sum does not know what the bytes mean"}),
		"vhost":              append(bans(side, "flowtable"), bans(up, "bpf", "controller", "cmd")...),
		"vhost/virtio":       bans("the formats of the standard, without memory or rings", "vhost/guestmem", "vhost/vring", "vhost/user", "flowtable", "controller"),
		"vhost/guestmem":     bans("memory, whatever lies in it", "vhost/virtio", "vhost/vring", "vhost/user", "flowtable", "controller"),
		"vhost/vring":        bans("rings, whatever they carry and whoever set them up", "vhost/user", "flowtable", "controller"),
		"vhost/user":         bans("the protocol, whatever the rings carry", "flowtable", "controller", "bpf"),
		"vhost/tap":          append(bans("the kernel's ways to a tap, beside vhost-user", "vhost/user"), bans(up, "flowtable", "bpf", "controller", "cmd")...),
		"vhost/unixsock":     bans("sockets, whatever is said on them", "vhost/user", "vhost/vring", "flowtable", "controller"),
		"bpf/meta":           bans("what the programs write in front of a frame, without the programs", "bpf", "vhost", "controller", "cmd"),
		"bpf":                bans("the programs and their maps, whoever reads them", "vhost", "controller", "cmd"),
		"controller/xsk":     bans("AF_XDP, whatever is in the frames", "flowtable", "vhost", "bpf"),
		"controller/netdev":  bans("facts of the host; it completes partial checksums, and that is all it does to frames", "flowtable/packet", "vhost", "bpf"),
		"controller/api":     bans("what crosses the control socket: a client needs none of what is behind it", "flowtable", "vhost", "bpf", "controller/xsk", "controller/netdev", "controller/datapath"),
		"controller/observe": bans("it looks on, beside any controller", "vhost", "flowtable/packet", "controller/api", "controller/datapath", "controller/xsk", "controller/state", "cmd"),
		"controller/state":   bans("the file's own types: what is kept must not change because something else does", "flowtable", "vhost", "bpf", "controller/api", "controller/datapath", "controller/netdev"),
		// A process boundary between the control side and the data plane must be possible along this line.
		"controller/datapath": append(bans(wire, "bpf", "controller/api", "controller/state", "controller/report", "controller/netdev", "controller/netns", "cmd"),
			ban{"github.com/vishvananda/netlink", "it is given descriptors and opens none"}, ban{"github.com/urfave", "it has no command line"}),
		"controller/report":     append(bans("pure functions of a snapshot", "controller/netdev", "controller/netns", "controller/state", "cmd"), ban{"github.com/vishvananda/netlink", "it looks at nothing but the snapshot"}),
		"controller/hostchange": bans("changes of the host, whoever wants them", "flowtable/packet", "vhost", "bpf", "controller/api", "controller/datapath", "cmd"),
		"controller/parcel":     bans("a state and descriptors, whatever they are for", "flowtable", "vhost", "bpf", "controller/api", "controller/datapath", "controller/state", "cmd"),
		"controller/fdstore":    bans("descriptors and their names, whatever they are for", "flowtable", "vhost", "bpf", "controller/api", "controller/parcel", "controller/state", "cmd"),
		"controller/hook":       bans("a client among others: it reads what others say of a VM, and looks at the host's interfaces alone", "controller/datapath", "controller/report", "controller/state", "vhost", "bpf", "cmd"),
		"controller/apply":      bans("a client among others: it knows what crosses the control socket", "controller/datapath", "controller/netdev", "controller/report", "controller/state", "flowtable", "vhost", "bpf", "cmd"),
		"controller/pcapng":     bans("it writes what crossed the control socket, and is tested without one", "controller/datapath", "controller/netdev", "controller/report", "controller/state", "flowtable", "vhost", "bpf", "cmd"),
		"controller/metrics":    bans("it shows what a look saw, whoever looked, and is tested without one", "controller/datapath", "controller/netdev", "controller/report", "controller/state", "flowtable/packet", "vhost", "bpf", "cmd"),
		"controller/top":        append(bans("it reads what the controller answered, and is tested without one", "controller/datapath", "controller/netdev", "controller/report", "controller/state", "flowtable", "vhost", "bpf", "cmd"), ban{"charm.land", "it lays out a screen and knows no terminal"}),
		"controller/why":        bans("it reads what the controller answered, and is tested without one", "controller/datapath", "controller/netdev", "controller/report", "controller/state", "flowtable/packet", "vhost", "bpf", "cmd"),
		"controller/doctor":     bans("it looks at a host, with a controller or without", "flowtable/packet", "vhost", "controller/api", "controller/datapath", "controller/report", "cmd"),
		"controller/survey":     bans("it describes a machine, with a controller or without", "flowtable/packet", "vhost", "controller/datapath", "controller/report", "cmd"),
		"controller":            bans("the command line is above it", "cmd"),
	}
	for pkg, banned := range never {
		out, err := exec.Command("go", "list", "-deps", mod+pkg).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pkg, err)
		}
		for dep := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
			for _, b := range banned {
				ours, foreign := strings.CutPrefix(dep, mod)
				if dep != mod+pkg && !(ours == "bpf/meta" && b.path == "bpf") && (foreign && under(ours, b.path) || under(dep, b.path)) {
					t.Errorf("%s imports %s, which it must not know: %s", pkg, dep, b.why)
				}
			}
		}
	}
	// What the data plane itself imports, beside what others bring in: its logger brings JSON, and the rings' owners bring sockets.
	out, err := exec.Command("go", "list", "-f", "{{join .Imports \"\\n\"}}", mod+"controller/datapath").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		for _, b := range []ban{{"encoding/json", "it knows no JSON"}, {"os", "it opens no descriptor"}, {"net", "it opens no descriptor"}, {"flag", "it has no command line"}, {"os/exec", "it runs nothing"}} {
			if dep == b.path {
				t.Errorf("controller/datapath imports %s: %s", dep, b.why)
			}
		}
	}
}

func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// A folder is called as its package, and no two packages are called the same: a name in the code says where to look.
func TestAFolderIsCalledAsItsPackage(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.Name}} {{.ImportPath}}", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, folder, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "main" {
			continue
		}
		if path.Base(folder) != name {
			t.Errorf("package %s is in folder %s", name, folder)
		}
		if other := seen[name]; other != "" {
			t.Errorf("%s and %s are both package %s", other, folder, name)
		}
		seen[name] = folder
	}
	if len(seen) < 20 {
		t.Errorf("%d packages: this looked at nothing", len(seen))
	}
}
