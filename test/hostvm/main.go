// Command hostvm runs tests, the demonstration or any program as root in a throw-away Linux VM: QEMU without KVM, the kernel
// that test/vm/setup.sh gets, an initramfs. It is for what this machine's own kernel must not or cannot do: a kernel bug met
// there, or a mistake with a network, stays there.
//
//	go run ./test/hostvm [FLAG...] [PACKAGE...]         the tests of packages; by default those that need privileges
//	go run ./test/hostvm [FLAG...] demo [FLAG...]       rscctl demo
//	go run ./test/hostvm [FLAG...] systemd              the tests of the package and its service, under a real systemd
//	go run ./test/hostvm [FLAG...] exec PROGRAM [ARG...]
//
// With -count the VM has one processor, and its clock goes by the instructions that it executes, a nanosecond for each: what programs there
// measure of processor time and of speed is a count, which is the same again on a busy machine, and no time of a real one.
//
// The VM has /dev/vhost-net; of a package named as PACKAGE@packet the tests named after taps run without it. ./test/vm runs as
// far as it needs no compiler there, with a QEMU of its own: a real guest on a tap with vhost=on.
//
// It exits with 1 if a test failed or the VM did not come to the end, with 2 on wrong usage, and after exec with the program's
// own exit code, or 125 if there is none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rscctl/rscctl/test/vm"
	"github.com/rscctl/rscctl/test/vm/control"
)

// noProgram is the exit code where there is no program's own, as of docker run.
const noProgram = 125

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostvm:", err)
	}
	stop()
	os.Exit(code)
}

// settings are the flags.
type settings struct {
	pattern    string
	all, json  bool
	vm         vm.Options
	timeout    time.Duration
	modules    string
	dir        string
	files, env list
}

func run(ctx context.Context, args []string) (code int, err error) {
	var s settings
	f := flag.NewFlagSet("hostvm", flag.ContinueOnError)
	f.StringVar(&s.pattern, "run", "", "run the tests that match this `PATTERN` only")
	f.BoolVar(&s.all, "all", false, "all tests of ./controller/demo and ./test/e2e, not only those that see what the kernel decides, and those of taps once more without /dev/vhost-net")
	f.BoolVar(&s.json, "json", false, "print the tests' events as 'go test -json' does")
	f.IntVar(&s.vm.CPUs, "cpus", 0, "processors of the VM; 0: 2, or with -count 1")
	f.BoolVar(&s.vm.Count, "count", false, "count instructions: the VM's clock goes by what it executes, so that CPU times there can be compared and repeated. For one processor; it takes several times as long")
	f.StringVar(&s.vm.Memory, "memory", "4096M", "memory of the VM, programs and files included")
	f.DurationVar(&s.timeout, "timeout", 70*time.Minute, "end the VM after this long")
	f.StringVar(&s.modules, "modules", "", "more kernel `MODULES` to load, with commas between; those the kernel lacks are an error")
	f.StringVar(&s.vm.Wire, "wire", "", "two NICs of this `MODEL` of QEMU's with a wire between them, as \"igb\", which the tests use instead of a veth pair")
	f.StringVar(&s.dir, "dir", "", "exec: copy this `FOLDER` to the same path in the VM and run the program there")
	f.Var(&s.files, "file", "exec: copy a file or folder, `HERE[:THERE]`; may be repeated. A program's libraries go along")
	f.Var(&s.env, "env", "exec: `NAME=VALUE` for the program; may be repeated")
	if err := f.Parse(args); err != nil {
		return 2, nil // Parse has said what is wrong
	}
	if err := s.processors(); err != nil {
		return 2, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	tmp, err := os.MkdirTemp("", "rscctl-hostvm-")
	if err != nil {
		return noProgram, err
	}
	defer os.RemoveAll(tmp)
	switch f.Arg(0) {
	case "exec":
		if f.NArg() < 2 {
			return 2, errors.New("exec: which program?")
		}
		return s.exec(ctx, tmp, f.Args()[1:])
	case "demo":
		err = s.demo(ctx, tmp, f.Args())
	case "systemd":
		err = s.systemd(ctx, tmp)
	default:
		err = s.tests(ctx, tmp, f.Args())
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// errCounted is a mistake in the flags.
var errCounted = errors.New("-count: one processor at most: several would be charged for each other's instructions")

// processors completes the flags that say what the VM runs on.
func (s *settings) processors() error {
	switch {
	case s.vm.CPUs != 0 && s.vm.Count && s.vm.CPUs != 1:
		return errCounted
	case s.vm.CPUs == 0 && s.vm.Count:
		s.vm.CPUs = 1
	case s.vm.CPUs == 0:
		s.vm.CPUs = 2
	}
	return nil
}

// exec runs a program of this machine.
func (s *settings) exec(ctx context.Context, tmp string, args []string) (code int, err error) {
	e, x, err := s.command(args)
	if err != nil {
		return noProgram, err
	}
	v, err := s.boot(ctx, tmp, x)
	if err != nil {
		return noProgram, err
	}
	defer v.Kill()
	r, err := v.Exec(ctx, e, os.Stdout)
	if err != nil {
		return noProgram, explained(v, err)
	}
	if r.Exit != 0 {
		fmt.Fprintln(os.Stderr, "hostvm: the program ended:", r.How)
	}
	if r.Exit < 0 {
		return noProgram, nil
	}
	return r.Exit, nil
}

// demo runs the product's demonstration; args begin with the verb.
func (s *settings) demo(ctx context.Context, tmp string, args []string) error {
	x := vm.Extras{Files: map[string]string{}}
	product, err := compile(ctx, tmp, "rscctl", "build", "./cmd/rscctl")
	if err != nil {
		return err
	}
	x.Files[productPath] = product
	v, err := s.boot(ctx, tmp, x)
	if err != nil {
		return err
	}
	defer v.Kill()
	r, err := v.Exec(ctx, control.Exec{Args: append([]string{productPath}, args...), Dir: "/tmp"}, os.Stdout)
	if err != nil {
		return explained(v, err)
	}
	if r.Exit != 0 {
		return fmt.Errorf("demo: %s", r.How)
	}
	return nil
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
