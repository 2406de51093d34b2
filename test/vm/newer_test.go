package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newer is where setup.sh newer leaves a QEMU and a kernel that this distribution has not.
var newer = filepath.Join(".cache", "newer")

// newerKernel is the kernel of the environment, or else the one of setup.sh newer, or else the usual one.
func newerKernel() (Kernel, error) {
	k := Kernel{Image: filepath.Join(newer, "kernel", "vmlinuz"), Modules: filepath.Join(newer, "kernel", "modules")}
	if _, err := os.Stat(k.Image); err != nil || os.Getenv(EnvKernel) != "" {
		return FindKernel(".")
	}
	return k, nil
}

// needUSO returns what a VM is that may take UDP superframes, or skips: a QEMU that offers them (guest_uso4, QEMU 8.2) and the newest
// kernel there is.
func needUSO(t *testing.T) Options {
	t.Helper()
	needVM(t)
	o := Options{QEMU: QEMU}
	if own := filepath.Join(newer, "bin", QEMU); exec.Command(own, "--version").Run() == nil {
		o.QEMU = own
	}
	help, err := exec.Command(o.QEMU, "-device", "virtio-net-pci,help").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(help), "guest_uso4") {
		t.Skip("allowed: this QEMU offers its guests no UDP superframes (before 8.2): test/vm/setup.sh newer gets one that does")
	}
	if o.Kernel, o.Initrd, err = shared.newer(); err != nil {
		t.Fatal(err)
	}
	return o
}
