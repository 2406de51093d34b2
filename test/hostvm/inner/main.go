// Command inner is the init of the VM that test/hostvm starts: it loads the modules, makes a small Linux around itself,
// runs the test programs one after the other and powers off. What it prints on the second serial port is the test
// programs' own output, with a line before and after each.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "inner:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ what, on, fs string }{
		{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"bpf", "/sys/fs/bpf", "bpf"},
		{"tmpfs", "/tmp", "tmpfs"}, {"tmpfs", "/run", "tmpfs"},
	} {
		if err := os.MkdirAll(m.on, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		if err := unix.Mount(m.what, m.on, m.fs, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.on, err)
		}
	}
	out, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	f, err := os.Open("/tests/list")
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text()) // feed, name, folder, arguments
		feed, name, dir, args := words[0], words[1], words[2], words[3:]
		if err := vhostNet(feed == "vhost"); err != nil {
			return err
		}
		start := time.Now()
		fmt.Fprintf(out, "@@ RUN %s\n", name)
		cmd := exec.Command("/tests/"+name, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
		cmd.Env = []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin", "HOME=/tmp", "TMPDIR=/tmp", "RSCCTL_BINARY=/tests/rscctl", "RSCCTL_INSIDE=1",
			// For test/vm, whose guests' parts are ready made: an emulated machine in an emulated one is very slow.
			"RSCCTL_VM=1", "RSCCTL_VM_KERNEL=/guest/vmlinuz", "RSCCTL_VM_MODULES=/guest", "RSCCTL_VM_INITRD=/guest/initrd", "RSCCTL_VM_PATIENCE=20"}
		result := "pass"
		if err := cmd.Run(); err != nil {
			result = err.Error()
		}
		fmt.Fprintf(out, "@@ END %s %.0fs %s\n", name, time.Since(start).Seconds(), result)
	}
	return nil
}

// vhostNet lets /dev/vhost-net be there or not.
func vhostNet(there bool) error {
	const at, away = "/dev/vhost-net", "/dev/vhost-net.away"
	from, to := at, away
	if there {
		from, to = away, at
	}
	if err := os.Rename(from, to); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("/dev/vhost-net: %w", err)
	}
	return nil
}

func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}
