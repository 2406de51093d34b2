package demo

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

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

// host lists what the demo could leave. It cannot tell whose a program is: nothing else may come and go meanwhile.
func host(t *testing.T) map[string]bool {
	t.Helper()
	m := map[string]bool{}
	names, err := netns.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		m["namespace "+n] = true
	}
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			break
		}
		m[fmt.Sprint("program ", id)] = true
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for id := ebpf.MapID(0); ; {
		if id, err = ebpf.MapGetNextID(id); err != nil {
			break
		}
		m[fmt.Sprint("map ", id)] = true
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for pid, role := range children(t, os.Getpid()) {
		m[fmt.Sprint("process ", role, pid)] = true
	}
	return m
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
