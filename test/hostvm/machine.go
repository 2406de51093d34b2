package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm"
	"github.com/rscctl/rscctl/test/vm/control"
)

// drivers are what the tests and the product use, where the kernel has them as modules. The first is what nf_tables needs before Linux 6.14 and
// asks for by what it does, not by its name.
var drivers = []string{"crc32c_generic", "veth", "tun", "bridge", "cls_bpf", "sch_ingress", "8021q", "bonding", "vxlan", "ip_gre", "wireguard", "cls_u32", "vhost_net",
	"nf_tables", "br_netfilter", "iptable_filter", "ebtable_filter", "vduse", "virtio_vdpa"}

// programs are what the tests run, where this machine has them: the test that misses one says so.
var programs = []string{"true", "sh", "cat", "mv", "readlink", "sleep", "ip", "tc", "bridge", "ethtool"}

// bootWithin bounds an emulated boot with a large initramfs on a busy machine.
const bootWithin = 4 * time.Minute

// boot starts the VM with the files of x and all that its programs load, and waits until it takes orders.
func (s *settings) boot(ctx context.Context, tmp string, x vm.Extras) (*vm.VM, error) {
	kernel, err := vm.FindKernel("test/vm")
	if err != nil {
		return nil, err
	}
	x.Wanted = drivers
	if s.modules != "" {
		x.Modules = strings.Split(s.modules, ",")
	}
	if s.vm.Wire != "" {
		x.Modules = append(x.Modules, driverOf(s.vm.Wire))
	}
	for _, name := range programs {
		if path, err := exec.LookPath(name); err == nil {
			x.Files["/bin/"+name] = path
		}
	}
	if err := addLibraries(ctx, x.Files); err != nil {
		return nil, err
	}
	o := s.vm
	// After an oops nothing of what a test says is to be trusted: the VM starts again, and whoever waits for an answer is told.
	o.Kernel, o.Initrd, o.Dir, o.Name, o.Append = kernel, filepath.Join(tmp, "initrd"), tmp, "hostvm", "sysctl.kernel.panic_on_oops=1"
	if err := vm.BuildInitrd(ctx, kernel, o.Initrd, x); err != nil {
		return nil, err
	}
	v, err := vm.Start(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, err := v.WaitReady(ctx); err != nil {
		defer v.Kill()
		return nil, fmt.Errorf("%w\n%s", err, v.Report())
	}
	return v, nil
}

// driverOf is Linux's driver of a model of QEMU's: most have the same names.
func driverOf(model string) string {
	if strings.HasPrefix(model, "virtio-net") {
		return "virtio_net"
	}
	return model
}

// wire tells programs in the VM of the NICs that --wire asks for.
func (s *settings) wire() []string {
	if s.vm.Wire == "" {
		return nil
	}
	return []string{netnstest.WireEnv + "=eth0,eth1"}
}

// explained adds what the VM's console says to an error that the program itself cannot explain.
func explained(v *vm.VM, err error) error {
	if errors.Is(err, vm.ErrGone) || errors.Is(err, vm.ErrRebooted) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w\n%s", err, v.Report())
	}
	return err
}

// command is a program of this machine with its arguments, and the files that go along.
func (s *settings) command(args []string) (e control.Exec, x vm.Extras, err error) {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return e, x, err
	}
	there := "/bin/" + filepath.Base(program)
	e = control.Exec{Args: append([]string{there}, args[1:]...), Env: append(s.wire(), s.env...)}
	x.Files = map[string]string{}
	if x.Files[there], err = filepath.Abs(program); err != nil {
		return e, x, err
	}
	if s.dir != "" {
		if e.Dir, err = filepath.Abs(s.dir); err != nil {
			return e, x, err
		}
		x.Files[e.Dir] = e.Dir
	}
	for _, f := range s.files {
		here, there, given := strings.Cut(f, ":")
		if here, err = filepath.Abs(here); err != nil {
			return e, x, err
		}
		if !given {
			there = here
		}
		x.Files[there] = here
	}
	return e, x, nil
}

// addLibraries adds the shared libraries of every program among the files, at the paths where the loader looks.
func addLibraries(ctx context.Context, files map[string]string) error {
	for _, from := range slices.Collect(maps.Values(files)) {
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		out, err := exec.CommandContext(ctx, "ldd", from).Output()
		if err != nil {
			continue // static, or a script
		}
		for field := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(field, "/") {
				library := strings.TrimSuffix(field, ":")
				files[library] = library
			}
		}
	}
	return nil
}

// compile runs the go command for a static program and returns the program's path.
func compile(ctx context.Context, tmp, name, verb string, args ...string) (string, error) {
	out := filepath.Join(tmp, name)
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-ldflags=-s -w", "-o", out}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s %s: %w", verb, strings.Join(args, " "), err)
	}
	return out, nil
}
