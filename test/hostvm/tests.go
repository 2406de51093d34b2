package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rscctl/rscctl/test/vm"
	"github.com/rscctl/rscctl/test/vm/control"
)

const (
	module      = "github.com/rscctl/rscctl"
	productPath = "/tests/rscctl"
	packetOnly  = "@packet" // marks a package whose tap tests run without /dev/vhost-net
	testTimeout = 55 * time.Minute
	endToEnd    = "./test/e2e"
)

// privileged are the packages that touch the network's configuration and can run in the VM's small user space.
var privileged = []string{"./bpf", "./controller/netns", "./controller/netdev", "./vhost/stackguest", "./vhost/tap", "./test/tapvm",
	"./controller/demo", "./controller/observe", endToEnd}

// kernels are the tests from end to end that see what a kernel decides: bonds and VLAN devices, taps with vhost-net, where XDP and packet sockets
// pass frames, offloads, what outlives a process. The others ask what the product decides, which is the same on every kernel: an emulated machine
// takes seven times as long for them, so they are for -all.
var kernels = strings.Join([]string{
	"Bond", "Stacked", "OfAVLAN", "VLANsApart", "AcceleratedTag", // devices
	"TCPReachesATap", "TogglesOfATap", "ATapGuest", "FiltersOnATap", "DatagramsReachATap", "SurvivesItsController", "KeptTap", // taps
	"TCPArrives", "LeavesWhole", "Trains", "TunnelsBetween", "WireGuard", "PartialChecksums", "WhereTheirAddress", "SwitchedOnLater", "SomebodyElses", "Jumbo", "MTUThatNothing", "KernelsDriver", // frames
	"NobodyNotices", "CrashIs", "ChangesHands", "FailsOpen", "KilledController", "TakenOff", "CapabilitiesAreEnough", // processes
}, "|")

// environment is what the tests find set. RSCCTL_INSIDE says that the machine is emulated. The rest is for ./test/vm, whose
// guests' parts are ready made: an emulated machine in an emulated one is very slow.
var environment = []string{"RSCCTL_BINARY=" + productPath, "RSCCTL_INSIDE=1", "RSCCTL_VM=1",
	vm.EnvKernel + "=" + guestKernel, vm.EnvModules + "=/guest", "RSCCTL_VM_INITRD=" + guestInitrd, "RSCCTL_VM_PATIENCE=20"}

// testRun is one run of a package's tests.
type testRun struct {
	pkg    string // "./bpf"
	packet bool
}

func (r testRun) program() string {
	return "/tests/" + strings.ReplaceAll(strings.TrimPrefix(r.pkg, "./"), "/", "_") + ".test"
}

// folder is where the package's data files are in the VM.
func (r testRun) folder() string { return filepath.Join("/src", r.pkg) }

// name is the import path, with the mark.
func (r testRun) name() string {
	name := module + strings.TrimPrefix(r.pkg, ".")
	if r.packet {
		name += packetOnly
	}
	return name
}

// pattern selects the tests that are worth their time in an emulated machine.
func (r testRun) pattern(all bool) string {
	switch {
	case r.pkg == guestPackage:
		return "OwnTap"
	case r.pkg == "./bpf": // what an older kernel does otherwise; the rest fills maps, which takes minutes here
		return "Tap|Clsact|Killed|Live|Frags|Pieces|WithoutWords|SuperframesCross"
	case r.packet:
		return "Tap"
	case r.pkg == endToEnd && !all:
		return kernels
	case r.pkg == "./controller/demo" && !all:
		return "DemoMovesData"
	}
	return "."
}

// tests runs the packages one after the other.
func (s *settings) tests(ctx context.Context, tmp string, packages []string) error {
	if len(packages) == 0 {
		packages = privileged
		if s.all {
			packages = append(slices.Clone(privileged), endToEnd+packetOnly)
		}
	}
	var runs []testRun
	for _, p := range packages {
		pkg, packet := strings.CutSuffix(p, packetOnly)
		runs = append(runs, testRun{"./" + filepath.Clean(pkg), packet})
	}
	x, err := testFiles(ctx, tmp, runs)
	if err != nil {
		return err
	}
	v, err := s.boot(ctx, tmp, x)
	if err != nil {
		return err
	}
	defer v.Kill()
	if err := steady(ctx, v); err != nil {
		return err
	}
	var failed []string
	for _, r := range runs {
		if err := s.test(ctx, v, r); err != nil {
			failed = append(failed, r.name())
			fmt.Fprintf(os.Stderr, "hostvm: %s: %v\n", r.name(), explained(v, err))
			if errors.Is(err, vm.ErrGone) || errors.Is(err, vm.ErrRebooted) || ctx.Err() != nil {
				return fmt.Errorf("the VM did not come to the end: %w", err)
			}
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed in the VM: %s", strings.Join(failed, ", "))
	}
	return nil
}

// test runs one package.
func (s *settings) test(ctx context.Context, v *vm.VM, r testRun) error {
	if err := vhostNet(ctx, v, !r.packet); err != nil {
		return err
	}
	return s.run(ctx, v, r, append(s.wire(), environment...), r.folder())
}

// run runs a package's test program in a folder of the VM.
func (s *settings) run(ctx context.Context, v *vm.VM, r testRun, env []string, folder string) (err error) {
	pattern, verbose := s.pattern, "-test.v"
	if pattern == "" {
		pattern = r.pattern(s.all)
	}
	var out io.Writer = os.Stdout
	if s.json {
		verbose = "-test.v=test2json"
		events, err := newEvents(ctx, r.name())
		if err != nil {
			return err
		}
		defer events.close()
		out = events
	}
	result, err := v.Exec(ctx, control.Exec{
		Args: []string{r.program(), verbose, "-test.timeout=" + testTimeout.String(), "-test.run=" + pattern},
		Env:  env, Dir: folder,
	}, out)
	if err == nil && result.Exit != 0 {
		err = errors.New(result.How)
	}
	// The last line is the go command's, which looks at the exit code: a program that died has said nothing of it.
	last := "ok  \t"
	switch {
	case err != nil && s.json:
		last = "\x16FAIL\t" // the mark of lines that are meant for test2json
	case err != nil:
		last = "FAIL\t"
	}
	fmt.Fprintf(out, "%s%s\n", last, r.name())
	return err
}

// events turns a test program's output into the events of `go test -json`, on standard output.
type events struct {
	io.WriteCloser
	cmd *exec.Cmd
}

func newEvents(ctx context.Context, pkg string) (*events, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", pkg)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &events{in, cmd}, cmd.Start()
}

func (e *events) close() {
	e.Close()
	_ = e.cmd.Wait() // it ends when its input does
}

// steady hangs a clsact qdisc on the VM's loopback, where nobody looks, so that the kernel's receive path has its ingress hook
// switched on from the start. The hook is switched by writing into running code, and an emulated processor at times runs the old
// code for ever: a test that attached a TC filter beside traffic stopped the VM ("soft lockup" in asm_exc_int3).
func steady(ctx context.Context, v *vm.VM) error {
	if err := finish(ctx, v, "/bin/tc", "qdisc", "add", "dev", "lo", "clsact"); err != nil {
		return fmt.Errorf("tc in the VM: %w (install iproute2: test/vm/setup.sh net)", err)
	}
	return nil
}

// finish runs a program in the VM to its end. One that fails is an error.
func finish(ctx context.Context, v *vm.VM, args ...string) error {
	r, err := v.Exec(ctx, control.Exec{Args: args}, os.Stderr)
	if err == nil && r.Exit != 0 {
		err = errors.New(r.How)
	}
	return err
}

// vhostNet lets /dev/vhost-net be there or not.
func vhostNet(ctx context.Context, v *vm.VM, there bool) error {
	const script = `[ ! -e "$0" ] || mv "$0" "$1"`
	from, to := "/dev/vhost-net", "/dev/vhost-net.away"
	if there {
		from, to = to, from
	}
	if err := finish(ctx, v, "/bin/sh", "-c", script, from, to); err != nil {
		return fmt.Errorf("/dev/vhost-net: %w", err)
	}
	return nil
}

// testFiles compiles the product and the tests, and finds the packages' data files.
func testFiles(ctx context.Context, tmp string, runs []testRun) (x vm.Extras, err error) {
	x.Files = map[string]string{}
	if x.Files[productPath], err = compile(ctx, tmp, "rscctl", "build", "./cmd/rscctl"); err != nil {
		return x, err
	}
	empty := filepath.Join(tmp, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		return x, err
	}
	for _, r := range runs {
		if x.Files[r.program()] != "" {
			continue
		}
		if x.Files[r.program()], err = compile(ctx, tmp, filepath.Base(r.program()), "test", "-c", r.pkg); err != nil {
			return x, err
		}
		x.Files[r.folder()] = empty // the tests' working folder, where the package has no data
		if err := addData(x.Files, r.pkg, r.folder()); err != nil {
			return x, err
		}
		if r.pkg == guestPackage {
			if err := addGuest(ctx, x.Files, tmp); err != nil {
				return x, err
			}
		}
	}
	return x, nil
}

// addData adds a package's files that are no Go source, testdata included: tests read them by relative path.
func addData(files map[string]string, pkg, to string) error {
	return filepath.WalkDir(pkg, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(pkg, path)
		switch {
		case d.IsDir() && rel != "." && !strings.HasPrefix(rel, "testdata"):
			return fs.SkipDir
		case !d.IsDir() && !strings.HasSuffix(path, ".go"):
			files[filepath.Join(to, rel)] = path
		}
		return nil
	})
}
