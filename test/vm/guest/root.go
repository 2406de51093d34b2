//go:build linux

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A system on a disk: the harness names the disk by a kernel argument, and what it wants to have there lies in the initramfs below payload.
const (
	rootArg   = "vm.root="
	payload   = "/payload"
	newRoot   = "/newroot"
	agentArg  = "agent" // the argument with which this program runs as a service there
	agentPath = "/usr/local/sbin/vm-agent"
	agentUnit = "/etc/systemd/system/vm-agent.service"
	agentWant = "/etc/systemd/system/multi-user.target.wants/vm-agent.service"
	diskWait  = 10 * time.Second
)

// agentService starts this program when the system is up.
const agentService = `[Unit]
Description=Takes the orders of the test harness
After=network.target
[Service]
ExecStart=` + agentPath + ` ` + agentArg + `
`

// rootDisk is the disk that the kernel's arguments name, "" for none.
func rootDisk() string {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for arg := range strings.FieldsSeq(string(b)) {
		if disk, ok := strings.CutPrefix(arg, rootArg); ok {
			return disk
		}
	}
	return ""
}

// handOver makes the disk the root and its init the machine's, with the payload and this program on it. It returns only when it fails.
func handOver(disk string) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := mountDisk(disk); err != nil {
		return err
	}
	if err := copyTree(payload, newRoot); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if err := copyFile("/init", newRoot+agentPath, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(newRoot+agentUnit, []byte(agentService), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(newRoot+agentWant), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(agentUnit, newRoot+agentWant); err != nil {
		return err
	}
	// The new system mounts what the kernel shows by itself.
	for _, at := range []string{"/dev/shm", "/sys/fs/bpf", "/sys", "/proc", "/dev"} {
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", newRoot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// mountDisk waits for the disk, which its driver finds by itself.
func mountDisk(disk string) error {
	for end := time.Now().Add(diskWait); ; {
		err := unix.Mount(disk, newRoot, "ext4", 0, "")
		if err == nil || time.Now().After(end) {
			if err != nil {
				err = fmt.Errorf("mount %s: %w", disk, err)
			}
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return copyFile(path, filepath.Join(to, rel), info.Mode().Perm())
	})
}

func copyFile(from, to string, perm fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
