// Command vmexec runs a program, static or with its libraries, as root in a throw-away Linux VM: a kernel of its own to
// try network namespaces, XDP or modules in, that a mistake cannot take this machine's network down with.
//
//	go run ./test/vm/vmexec [flags] PROGRAM [ARG...]
//
// For example the privileged tests of a package:
//
//	CGO_ENABLED=0 go test -c -o /tmp/netdev.test ./controller/netdev
//	go run ./test/vm/vmexec -modules veth,tun /tmp/netdev.test -test.v
//
// It prints what the program prints and ends with its exit code. The kernel is the one of test/vm/setup.sh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rscctl/rscctl/test/vm"
	"github.com/rscctl/rscctl/test/vm/control"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
		code = 125 // as docker run: not the program's own
	}
	os.Exit(code)
}

func run() (int, error) {
	cpus := flag.Int("cpus", 2, "processors of the VM")
	memory := flag.String("memory", "2G", "memory of the VM, program and files included")
	modules := flag.String("modules", "veth,tun", "kernel `MODULES` to load, with commas between; those the kernel lacks are an error")
	timeout := flag.Duration("timeout", 10*time.Minute, "kill the program after this long")
	dir := flag.String("dir", "", "copy this `FOLDER` to the same path in the VM and run the program there")
	var files, env list
	flag.Var(&files, "file", "copy a file or folder, `HERE[:THERE]`; may be repeated. A program's libraries go along")
	flag.Var(&env, "env", "`NAME=VALUE` for the program; may be repeated")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		return 2, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	args := flag.Args()
	program, err := exec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	if program, err = filepath.Abs(program); err != nil {
		return 0, err
	}
	args[0] = "/bin/" + filepath.Base(program)
	x := vm.Extras{Files: map[string]string{args[0]: program}}
	if *modules != "" {
		x.Modules = strings.Split(*modules, ",")
	}
	if *dir != "" {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return 0, err
		}
		x.Files[*dir] = *dir
	}
	for _, f := range files {
		here, there, given := strings.Cut(f, ":")
		if here, err = filepath.Abs(here); err != nil {
			return 0, err
		}
		if !given {
			there = here
		}
		x.Files[there] = here
	}
	if err := addLibraries(ctx, x.Files); err != nil {
		return 0, err
	}
	return inVM(ctx, x, control.Exec{Args: args, Env: env, Dir: *dir, Timeout: *timeout},
		vm.Options{Name: "vmexec", CPUs: *cpus, Memory: *memory})
}

func inVM(ctx context.Context, x vm.Extras, e control.Exec, o vm.Options) (int, error) {
	k, err := vm.FindKernel("test/vm")
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "rscctl-vmexec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	o.Kernel, o.Initrd, o.Dir = k, filepath.Join(tmp, "initrd"), tmp
	if err := vm.BuildInitrd(ctx, k, o.Initrd, x); err != nil {
		return 0, err
	}
	v, err := vm.Start(o)
	if err != nil {
		return 0, err
	}
	defer v.Kill()
	boot, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if _, err := v.WaitReady(boot); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, v.Report())
	}
	r, err := v.Exec(ctx, e, os.Stdout)
	if errors.Is(err, vm.ErrGone) || errors.Is(err, vm.ErrRebooted) {
		return 0, fmt.Errorf("%w\n%s", err, v.Report()) // a panic is on the console
	}
	if err == nil && r.Exit != 0 {
		fmt.Fprintln(os.Stderr, "vmexec: the program ended:", r.How)
	}
	if r.Exit < 0 {
		r.Exit = 125
	}
	return r.Exit, err
}

// addLibraries adds the shared libraries of every program among the files, at the paths where the loader looks.
func addLibraries(ctx context.Context, files map[string]string) error {
	libraries := map[string]bool{}
	for _, from := range files {
		if info, err := os.Stat(from); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		out, err := exec.CommandContext(ctx, "ldd", from).Output()
		if err != nil {
			continue // static, or a script
		}
		for field := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(field, "/") {
				libraries[strings.TrimSuffix(field, ":")] = true
			}
		}
	}
	for l := range libraries {
		files[l] = l
	}
	return nil
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
