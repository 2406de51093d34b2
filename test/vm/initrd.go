package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Environment variables that replace the kernel setup.sh downloads.
const (
	EnvKernel  = "RSCCTL_VM_KERNEL"
	EnvModules = "RSCCTL_VM_MODULES"
)

// ErrNoKernel is returned when there is no kernel for the guest. The remedy is in its text.
var ErrNoKernel = errors.New("a guest kernel (run test/vm/setup.sh, or set " + EnvKernel + " and " + EnvModules + ")")

// Kernel is a guest kernel and the folder of its modules.
type Kernel struct {
	Image   string
	Modules string
}

// FindKernel takes the kernel of the environment, or else the one in the cache of setup.sh under the folder dir.
func FindKernel(dir string) (Kernel, error) {
	k := Kernel{Image: os.Getenv(EnvKernel), Modules: os.Getenv(EnvModules)}
	if k.Image == "" {
		cache := filepath.Join(dir, ".cache", "kernel")
		k = Kernel{Image: filepath.Join(cache, "vmlinuz"), Modules: filepath.Join(cache, "modules")}
	}
	if _, err := os.Stat(k.Image); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Kernel{}, ErrNoKernel
		}
		return Kernel{}, fmt.Errorf("guest kernel: %w", err)
	}
	return k, nil
}

// Extras are what a guest that does more than receive finds in its initramfs.
type Extras struct {
	Modules []string          // loaded at boot, after the NIC's, with what they depend on; those the kernel lacks are an error
	Wanted  []string          // the same, passed over where the kernel lacks them or has them built in
	Files   map[string]string // path in the guest to path here; folders are copied whole, links as what they point at
}

// BuildInitrd builds the guest's program with the go command and writes it, with the modules it will load and the
// extras, as an initramfs to the file path.
func BuildInitrd(ctx context.Context, k Kernel, path string, x Extras) error {
	set, err := openModules(k.Modules)
	if err != nil {
		return err
	}
	modules, err := set.resolve(x.Modules, slices.Concat(wantedModules, x.Wanted))
	if err != nil {
		return err
	}
	program, err := buildGuest(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = errors.Join(writeInitrd(newCPIO(w), program, modules, x.Files), w.Flush(), f.Close())
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	return nil
}

func writeInitrd(c *cpioWriter, program []byte, modules []module, files map[string]string) error {
	c.dir("dev")
	// The kernel opens it for init's standard streams before there is a devtmpfs.
	c.char("dev/console", 0o600, 5, 1)
	c.file("init", 0o755, program)
	c.dir("modules")
	var order strings.Builder
	for _, m := range modules {
		name := m.name + ".ko"
		c.file("modules/"+name, 0o644, m.data)
		order.WriteString(name + "\n")
	}
	c.file("modules/order", 0o644, []byte(order.String()))
	tree := &fileTree{c: c, made: map[string]bool{".": true, "dev": true, "modules": true}}
	for _, to := range slices.Sorted(maps.Keys(files)) {
		if err := tree.add(strings.TrimPrefix(to, "/"), files[to]); err != nil {
			return err
		}
	}
	return c.close()
}

// fileTree adds files and whatever folders they lie in.
type fileTree struct {
	c    *cpioWriter
	made map[string]bool
}

func (t *fileTree) add(to, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		t.dir(to)
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := t.add(filepath.Join(to, e.Name()), filepath.Join(from, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.dir(filepath.Dir(to))
	t.c.file(to, int(info.Mode().Perm()), data)
	return nil
}

func (t *fileTree) dir(name string) {
	if t.made[name] {
		return
	}
	t.dir(filepath.Dir(name))
	t.made[name] = true
	t.c.dir(name)
}

// buildGuest compiles test/vm/guest, statically: there is no C library in the guest.
func buildGuest(ctx context.Context, dir string) ([]byte, error) {
	out := filepath.Join(dir, "guest-init")
	if err := goBuild(ctx, out, "github.com/rscctl/rscctl/test/vm/guest", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

func goBuild(ctx context.Context, out, pkg string, env ...string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), env...)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, text.String())
	}
	return nil
}
