package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/rscctl/rscctl/test/vm"
)

// guestPackage boots guests of its own, in the VM.
const guestPackage = "./test/vm"

// Where the kernel and the initramfs of these guests are in the VM (as inner names them to the tests).
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

// guestFiles are a guest's kernel and initramfs, made here, and QEMU's firmware.
func guestFiles(ctx context.Context, kernel vm.Kernel, dir string) (files []vm.File, err error) {
	initrd := filepath.Join(dir, "guest-initrd")
	if err := vm.BuildInitrd(ctx, kernel, initrd, vm.Extras{}); err != nil {
		return nil, err
	}
	for _, f := range []struct{ here, there string }{{kernel.Image, guestKernel}, {initrd, guestInitrd}} {
		data, err := os.ReadFile(f.here)
		if err != nil {
			return nil, err
		}
		files = append(files, vm.File{Path: f.there, Perm: 0o644, Data: data})
	}
	for _, pattern := range firmware {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			files = append(files, vm.File{Path: path, Perm: 0o644, Data: data})
		}
	}
	return files, nil
}
