package vm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// PrivilegedPackages are the packages whose tests touch the network's configuration.
func PrivilegedPackages() []string {
	return append(SecondKernelPackages(), "./controller/xsk", "./test/netns")
}

// SecondKernelPackages are those of them that test/hostvm runs in a VM by default. The others need programs or a kernel
// that its small user space does not have; `go run ./test/hostvm PACKAGE` tries them all the same.
func SecondKernelPackages() []string {
	return []string{"./bpf", "./controller/netns", "./controller/netdev", "./vhost/tapguest", "./vhost/kernel", "./test/tapvm", "./controller/demo", "./test/e2e"}
}

// File is one file of an initramfs. Its folders are made as needed.
type File struct {
	Path string // in the VM, absolute
	Perm int
	Data []byte
}

// BuildArchive writes an initramfs with an init program, the named kernel modules with what they depend on (under
// /modules, in the order of /modules/order), and files.
func BuildArchive(k Kernel, path string, init []byte, modules []string, files []File) error {
	set, err := openModules(k.Modules)
	if err != nil {
		return err
	}
	mods, err := set.resolve(modules...)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	c := newCPIO(w)
	seen := map[string]bool{"dev": true, "modules": true}
	for _, file := range files {
		addFolders(c, seen, filepath.Dir(file.Path))
		c.file(file.Path, file.Perm, file.Data)
	}
	if err := errors.Join(writeInitrd(c, init, mods, nil), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	return nil
}

// addFolders adds a folder and its parents once.
func addFolders(c *cpioWriter, seen map[string]bool, dir string) {
	dir = strings.Trim(dir, "/.")
	if dir == "" || seen[dir] {
		return
	}
	addFolders(c, seen, filepath.Dir(dir))
	seen[dir] = true
	c.dir(dir)
}
