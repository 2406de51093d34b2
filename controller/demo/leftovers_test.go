package demo

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netns"
)

// checkLeftovers gives the test a temporary folder of its own and, when it ends, compares what there is on the host with
// what there was: files, namespaces' names, BPF programs and maps, processes of the demo. What the kernel and the
// children take a moment for may take a moment.
func checkLeftovers(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rscdemo-test-") // short, or the demo falls back to /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	before := host(t)
	t.Cleanup(func() {
		var lines []string
		eventually(t, "nothing is left", func() bool {
			lines = nil
			for thing := range maps.Keys(host(t)) {
				if !before[thing] {
					lines = append(lines, thing)
				}
			}
			if names, _ := os.ReadDir(dir); len(names) > 0 {
				lines = append(lines, fmt.Sprint("files ", names))
			}
			return len(lines) == 0
		})
		if len(lines) > 0 {
			t.Errorf("left behind: %v", slices.Sorted(slices.Values(lines)))
		}
		_ = os.RemoveAll(dir)
	})
}

// host lists what the demo could leave: what bears its names. Somebody else's programs and namespaces may come and go meanwhile.
func host(t *testing.T) map[string]bool {
	t.Helper()
	m := map[string]bool{}
	names, err := netns.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if n == senderNamespace {
			m["namespace "+n] = true
		}
	}
	for _, q := range quotaPlaces() {
		groups, _ := filepath.Glob(filepath.Join(q.parent, quotaPrefix+"*"))
		for _, g := range groups {
			m["control group "+g] = true
		}
	}
	ours := signatures()
	each(t, ebpf.ProgramGetNextID, func(id ebpf.ProgramID) {
		if s := programSignature(id); ours[s] {
			m[fmt.Sprint("program ", id, " ", s)] = true
		}
	})
	each(t, ebpf.MapGetNextID, func(id ebpf.MapID) {
		if s := mapSignature(id); ours[s] {
			m[fmt.Sprint("map ", id, " ", s)] = true
		}
	})
	for pid, role := range children(t, os.Getpid()) {
		m[fmt.Sprint("process ", role, pid)] = true
	}
	return m
}

// each calls fn with every id that next finds.
func each[ID ~uint32](t *testing.T, next func(ID) (ID, error), fn func(ID)) {
	t.Helper()
	for id := ID(0); ; {
		var err error
		if id, err = next(id); errors.Is(err, os.ErrNotExist) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		fn(id)
	}
}

// signatures tell the product's programs and maps from everybody else's: a program's name and its tag, which the kernel makes of the
// instructions, a map's name and shape. The tags come from programs that are loaded here and closed again.
var signatures = sync.OnceValue(func() map[string]bool {
	ours := map[string]bool{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadRsc, bpf.LoadRscTap} {
		spec, err := load()
		if err != nil {
			panic(err) // it is part of this binary
		}
		coll, err := ebpf.NewCollection(spec)
		if err != nil {
			continue // what this kernel cannot load, the demo cannot leave
		}
		for _, p := range coll.Programs {
			if info, err := p.Info(); err == nil {
				ours[info.Name+" "+info.Tag] = true
			}
		}
		for _, m := range coll.Maps {
			if info, err := m.Info(); err == nil {
				ours[mapShape(info)] = true
			}
		}
		coll.Close()
	}
	return ours
})

// programSignature is "" for a program that has gone in between.
func programSignature(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name + " " + info.Tag
}

// mapSignature is "" for a map that has gone in between.
func mapSignature(id ebpf.MapID) string {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return ""
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return ""
	}
	return mapShape(info)
}

func mapShape(i *ebpf.MapInfo) string {
	return fmt.Sprintf("%s %v %d %d", i.Name, i.Type, i.KeySize, i.ValueSize)
}

// Somebody else's program is not the demo's; one of the product's that stays is.
func TestLeftoversAreOurOwn(t *testing.T) {
	need(t)
	before := host(t)
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_elses", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for thing := range host(t) {
		if !before[thing] {
			t.Errorf("with somebody else's program there is %s", thing)
		}
	}
	ours, err := bpf.Load(bpf.LoadOptions{Ifindex: 1, Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	programs, tables := 0, 0
	for thing := range host(t) {
		if !before[thing] && strings.HasPrefix(thing, "program ") {
			programs++
		} else if !before[thing] {
			tables++
		}
	}
	if programs != 1 || tables < 5 {
		t.Errorf("of ours it sees %d programs and %d maps", programs, tables)
	}
}

// children are the demo's processes below a parent, by their role.
func children(t *testing.T, parent int) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	m := map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		f := bytes.Split(args, []byte{0})
		if len(f) < 3 || string(f[1]) != ChildVerb {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", parent)) {
			m[pid] = string(f[2])
		}
	}
	return m
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not within ten seconds: %s", what)
}
