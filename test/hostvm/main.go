// Command hostvm runs the privileged tests in a throw-away VM: QEMU without KVM, the kernel that test/vm/setup.sh
// downloads, and the test programs in an initramfs. It is for machines whose own kernel must not or cannot be used: a
// kernel bug met by a test stays in the VM.
//
//	go run ./test/hostvm [PACKAGE...]
//	go run ./test/hostvm demo [FLAG...]
//
// The second form runs `rscctl demo` there. The VM has /dev/vhost-net; of a package named as PACKAGE@packet the tests named
// after taps run without it. ./test/vm runs as far as it needs no compiler there, with a QEMU of its own: a real guest on a tap with
// vhost=on. -run PATTERN as the first argument limits the tests of all packages.
//
// It prints the tests' output and, last, "N passed, N failed, N skipped". It exits with 1 if a test failed or the VM did
// not come to the end.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rscctl/rscctl/test/vm"
)

// programs are what the tests run; each comes with the libraries it needs.
var programs = []string{"true", "sh", "cat", "readlink", "sleep", "ip", "bridge", "ethtool"}

// modules are the drivers the tests use, where the kernel has them as modules.
var modules = []string{"veth", "tun", "ipv6", "af_packet", "bridge", "cls_bpf", "sch_ingress", "8021q", "vhost_net",
	"nf_tables", "br_netfilter", "iptable_filter", "ebtable_filter"}

const (
	timeLimit = 30 * time.Minute
	memory    = "4096M"
)

func main() {
	args := os.Args[1:]
	var w work
	if len(args) > 1 && args[0] == "-run" {
		w.pattern, args = args[1], args[2:]
	}
	switch {
	case len(args) > 0 && args[0] == "demo":
		w.demo = strings.Join(args, " ")
	case len(args) > 0:
		w.pkgs = args
	default:
		w.pkgs = append(vm.SecondKernelPackages(), "./test/e2e"+packetOnly)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	if err := run(ctx, w); err != nil {
		fmt.Fprintln(os.Stderr, "hostvm:", err)
		os.Exit(1)
	}
}

// packetOnly marks a package whose tap tests run without /dev/vhost-net.
const packetOnly = "@packet"

// work is what the VM does.
type work struct {
	pkgs    []string
	pattern string // of go test -run, "" for all
	demo    string // the verb and its flags, "" for none
}

func run(ctx context.Context, w work) error {
	kernel, err := vm.FindKernel("test/vm")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rscctl-hostvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := build(ctx, kernel, dir, initrd, w); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, vm.QEMU, "-nodefaults", "-no-reboot", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", "2", "-m", memory, "-kernel", kernel.Image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 sysctl.kernel.panic_on_oops=1",
		"-serial", "file:"+filepath.Join(dir, "console"), "-serial", "stdio")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	want := len(w.pkgs)
	if w.demo != "" {
		want++
	}
	var t tally
	for s := bufio.NewScanner(out); s.Scan(); {
		t.line(strings.TrimRight(s.Text(), "\r"))
	}
	err = cmd.Wait()
	if len(t.ended) != want || t.failed > 0 {
		console, _ := os.ReadFile(filepath.Join(dir, "console"))
		fmt.Printf("console of the VM:\n%s\n", console[max(0, len(console)-8<<10):])
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the VM did not end in %s", timeLimit)
	case err != nil:
		return fmt.Errorf("QEMU: %w", err)
	case len(t.ended) != want:
		return fmt.Errorf("%d of %d test programs came to their end", len(t.ended), want)
	case t.failed > 0:
		return fmt.Errorf("%d tests failed in the VM", t.failed)
	}
	return nil
}

// tally counts what the test programs print.
type tally struct {
	passed, failed, skipped int
	ended                   []string
}

func (t *tally) line(s string) {
	fmt.Println(s)
	word := strings.TrimSpace(s)
	switch {
	case strings.HasPrefix(word, "--- PASS"):
		t.passed++
	case strings.HasPrefix(word, "--- FAIL"):
		t.failed++
	case strings.HasPrefix(word, "--- SKIP"):
		t.skipped++
	case strings.HasPrefix(word, "@@ END"):
		t.ended = append(t.ended, word)
		if !strings.HasSuffix(word, " pass") {
			t.failed++
		}
	}
}

// build compiles the product, the tests and the VM's init, and packs them with the packages' data files.
func build(ctx context.Context, kernel vm.Kernel, dir, initrd string, w work) error {
	inner, err := compile(ctx, filepath.Join(dir, "inner"), "build", "./test/hostvm/inner")
	if err != nil {
		return err
	}
	product, err := compile(ctx, filepath.Join(dir, "rscctl"), "build", "./cmd/rscctl")
	if err != nil {
		return err
	}
	files := []vm.File{{Path: "/tests/rscctl", Perm: 0o755, Data: product}}
	var list strings.Builder
	packed := map[string]bool{}
	tools := programs
	for _, pkg := range w.pkgs {
		pkg, packet := strings.CutSuffix(pkg, packetOnly)
		name := strings.ReplaceAll(strings.TrimPrefix(pkg, "./"), "/", "_") + ".test"
		src := filepath.Join("/src", pkg)
		fmt.Fprintf(&list, "%s %s %s -test.v -test.timeout=25m -test.run=%s\n", feed(packet), name, src, w.tests(pkg, packet))
		if pkg == guestPackage && !packed[pkg] {
			tools = append(slices.Clone(tools), vm.QEMU)
			guest, err := guestFiles(ctx, kernel, dir)
			if err != nil {
				return err
			}
			files = append(files, guest...)
		}
		if packed[pkg] {
			continue
		}
		packed[pkg] = true
		program, err := compile(ctx, filepath.Join(dir, name), "test", "-c", pkg)
		if err != nil {
			return err
		}
		files = append(files, vm.File{Path: "/tests/" + name, Perm: 0o755, Data: program})
		data, err := dataFiles(pkg, src)
		if err != nil {
			return err
		}
		files = append(files, data...)
	}
	if w.demo != "" {
		fmt.Fprintf(&list, "%s rscctl /tmp %s\n", feed(false), w.demo)
	}
	found, err := programFiles(ctx, tools)
	if err != nil {
		return err
	}
	files = append(files, found...)
	files = append(files, vm.File{Path: "/tests/list", Perm: 0o644, Data: []byte(list.String())})
	return vm.BuildArchive(kernel, initrd, inner, modules, files)
}

// feed is the first word of a line for the VM's init.
func feed(packet bool) string {
	if packet {
		return "packet"
	}
	return "vhost"
}

// tests is the pattern of the tests to run.
func (w work) tests(pkg string, packet bool) string {
	switch {
	case w.pattern != "":
		return w.pattern
	case pkg == guestPackage:
		return "OwnTap"
	case pkg == "./bpf": // what an older kernel does otherwise; the rest fills maps, which takes minutes here
		return "Tap|Clsact|Killed|Live"
	case packet:
		return "Tap"
	}
	return "."
}

// compile runs the go command for a static program and returns it.
func compile(ctx context.Context, out, verb string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-ldflags=-s -w", "-o", out}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go %s %s: %w", verb, strings.Join(args, " "), err)
	}
	return os.ReadFile(out)
}

// dataFiles are a package's files that are no Go source, testdata included: tests read them by relative path.
func dataFiles(pkg, to string) ([]vm.File, error) {
	files := []vm.File{{Path: filepath.Join(to, ".here"), Perm: 0o644}} // the folder itself, where there is no data
	err := filepath.WalkDir(pkg, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(pkg, path)
		if d.IsDir() {
			if rel != "." && !strings.HasPrefix(rel, "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") {
			return nil
		}
		data, err := os.ReadFile(path)
		files = append(files, vm.File{Path: filepath.Join(to, rel), Perm: 0o644, Data: data})
		return err
	})
	return files, err
}

// programFiles are the programs, found in the path, and what ldd says they load.
func programFiles(ctx context.Context, names []string) (files []vm.File, err error) {
	seen := map[string]bool{}
	add := func(from, to string) error {
		if seen[to] {
			return nil
		}
		seen[to] = true
		data, err := os.ReadFile(from)
		files = append(files, vm.File{Path: to, Perm: 0o755, Data: data})
		return err
	}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue // the test that needs it says so
		}
		to := filepath.Join("/bin", name)
		if name == vm.QEMU { // it looks for its parts from where it lies
			to = path
		}
		if err := add(path, to); err != nil {
			return nil, err
		}
		out, err := exec.CommandContext(ctx, "ldd", path).Output()
		if err != nil {
			continue // static
		}
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				if err := add(word, word); err != nil {
					return nil, err
				}
			}
		}
	}
	return files, nil
}
