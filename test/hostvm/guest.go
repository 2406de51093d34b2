package main

import (
	"context"
	"os/exec"
	"path/filepath"

	"github.com/rscctl/rscctl/test/vm"
)

// guestPackage boots guests of its own, in the VM.
const guestPackage = "./test/vm"

// Where the kernel and the initramfs of these guests are in the VM.
const (
	guestKernel = "/guest/vmlinuz"
	guestInitrd = "/guest/initrd"
)

// firmware is what QEMU loads to start a Linux kernel directly, in the folders where Debian's and Ubuntu's QEMU looks, and the
// emulation itself, which these build as modules.
var firmware = []string{
	"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin",
	"/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/linuxboot.bin",
	"/usr/share/qemu/multiboot_dma.bin", "/usr/share/qemu/pvh.bin",
	"/usr/lib/*/qemu/accel-tcg-*.so",
}

// addGuest adds QEMU, which looks for its parts from where it lies, and a guest's kernel and initramfs, which is made here.
func addGuest(ctx context.Context, files map[string]string, tmp string) error {
	kernel, err := vm.FindKernel("test/vm")
	if err != nil {
		return err
	}
	initrd := filepath.Join(tmp, "guest-initrd")
	if err := vm.BuildInitrd(ctx, kernel, initrd, vm.Extras{}); err != nil {
		return err
	}
	qemu, err := exec.LookPath(vm.QEMU)
	if err != nil {
		return err
	}
	files[guestKernel], files[guestInitrd], files[qemu] = kernel.Image, initrd, qemu
	for _, pattern := range firmware {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			files[path] = path
		}
	}
	return nil
}
