package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rscctl/rscctl/test/vm"
)

// systemdPackage has the tests of the package and its service; they run as root in a system that they may change.
const systemdPackage = "./test/systemd"

// Where these tests find the packages, by the version that each says of itself.
const (
	payload     = "/payload"
	oldVersion  = "1.0.0"
	newVersion  = "1.0.1"
	packagesDir = "/root/packages"
)

// systemdImage is the system that test/vm/setup.sh makes.
const systemdImage = "test/vm/.cache/systemd.ext4"

// systemd runs the tests of the package under a real systemd, on a throw-away copy of a disk.
func (s *settings) systemd(ctx context.Context, tmp string) error {
	image, err := filepath.Abs(systemdImage)
	if err == nil {
		_, err = os.Stat(image)
	}
	if err != nil {
		return fmt.Errorf("%w (run test/vm/setup.sh vm systemd)", err)
	}
	kernel, err := vm.FindKernel("test/vm")
	if err != nil {
		return err
	}
	run := testRun{pkg: systemdPackage}
	program, err := compile(ctx, tmp, "systemd.test", "test", "-c", run.pkg)
	if err != nil {
		return err
	}
	x := vm.Extras{Modules: []string{"virtio_blk", "ext4"}, Wanted: drivers, Files: map[string]string{payload + run.program(): program}}
	if s.modules != "" {
		x.Modules = append(x.Modules, strings.Split(s.modules, ",")...)
	}
	for _, version := range []string{oldVersion, newVersion} {
		deb, err := buildPackage(ctx, tmp, version)
		if err != nil {
			return err
		}
		x.Files[payload+filepath.Join(packagesDir, version+".deb")] = deb
	}
	o := s.vm
	o.Kernel, o.Initrd, o.Dir, o.Name, o.Disk = kernel, filepath.Join(tmp, "initrd"), tmp, "systemd", image
	o.Append = "vm.root=/dev/vda sysctl.kernel.panic_on_oops=1 systemd.show_status=no"
	if err := vm.BuildInitrd(ctx, kernel, o.Initrd, x); err != nil {
		return err
	}
	v, err := vm.Start(o)
	if err != nil {
		return err
	}
	defer v.Kill()
	booting, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, err := v.WaitReady(booting); err != nil {
		return fmt.Errorf("%w\n%s", err, v.Report())
	}
	env := []string{"RSCCTL_SYSTEMD=1", "RSCCTL_PACKAGES=" + packagesDir}
	if err := s.run(ctx, v, run, env, "/root"); err != nil {
		return fmt.Errorf("%s: %w", run.name(), explained(v, err))
	}
	return nil
}

// buildPackage builds the Debian package of this tree under a version of its own.
func buildPackage(ctx context.Context, tmp, version string) (path string, err error) {
	cmd := exec.CommandContext(ctx, "packaging/build.sh", "amd64")
	cmd.Env = append(os.Environ(), "RSCCTL_VERSION="+version, "RSCCTL_DIST="+tmp)
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return "", fmt.Errorf("packaging/build.sh: %w: %s", err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}
