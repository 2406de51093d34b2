//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAll mounts what the kernel shows itself through, and makes the folders programs expect.
func mountAll() error {
	// The kernel makes the root of an initramfs writable for all; programs that load plugins refuse to do it from there.
	if err := os.Chmod("/", 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/tmp", "/run", "/var/run"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", "/sys/fs/bpf"}, {"tmpfs", "/dev/shm"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil && !os.IsExist(err) {
			// sysfs has the folder for bpf exactly when the kernel has that file system.
			if m.kind == "bpf" {
				continue
			}
			return err
		}
		// EBUSY: the kernel mounts devtmpfs by itself when it is configured so.
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// moduleDir holds the modules; moduleOrder in it names them one a line, each after those it needs. The harness, which
// has the tools to unpack and to sort, wrote both.
const (
	moduleDir   = "/modules"
	moduleOrder = "order"
)

func loadModules() error {
	f, err := os.Open(filepath.Join(moduleDir, moduleOrder))
	if errors.Is(err, os.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names := bufio.NewScanner(f)
	for names.Scan() {
		if err := loadModule(filepath.Join(moduleDir, names.Text())); err != nil {
			return fmt.Errorf("module %s: %w", names.Text(), err)
		}
	}
	return names.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// checkKernel tells a kernel without what every guest needs, before a test fails for no reason that can be seen.
func checkKernel() error {
	for _, f := range []struct {
		name         string
		family, kind int
	}{{"IPv6", unix.AF_INET6, unix.SOCK_DGRAM}, {"packet sockets", unix.AF_PACKET, unix.SOCK_RAW}} {
		fd, err := unix.Socket(f.family, f.kind, 0)
		if err != nil {
			return fmt.Errorf("this kernel has no %s, neither built in nor as a module: %w", f.name, err)
		}
		_ = unix.Close(fd)
	}
	return nil
}

// openControl opens the serial port of the orders as a plain pipe of bytes: no echo, no line editing.
func openControl() (*os.File, error) {
	f, err := os.OpenFile(controlPort, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return f, nil
}

// drainControl waits until the port has sent what was written to it.
func drainControl() {
	f, err := os.OpenFile(controlPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// readLine is a sysfs attribute without its newline; "" when it cannot be read.
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
