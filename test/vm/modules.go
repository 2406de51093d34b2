package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wantedModules are the drivers the guest needs where its kernel has them as modules. Whether a kernel without the file has
// the driver built in cannot be told from the folder: modules.builtin lists only what could have been a module, and newer
// kernels have IPv6 as a plain yes or no. The guest looks when it is up (test/vm/guest, checkKernel).
var wantedModules = []string{"virtio_pci", "virtio_net", "ipv6", "af_packet"}

// ErrNoModule is returned when the kernel has a module that must be loaded neither built in nor as a file.
var ErrNoModule = errors.New("the kernel has no such module")

// moduleSet reads modules from a lib/modules/VERSION folder. Their dependencies come from the modules themselves, so
// neither depmod nor its files are needed.
type moduleSet struct {
	path    map[string]string // name, with '_', to file
	builtin map[string]bool
}

// module is one driver, decompressed.
type module struct {
	name string
	data []byte
}

func openModules(dir string) (*moduleSet, error) {
	s := &moduleSet{path: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			s.path[moduleName(d.Name())] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		s.builtin[moduleName(filepath.Base(strings.TrimSpace(line)))] = true
	}
	return s, nil
}

// moduleName turns a file name into a module's name: the kernel takes '-' and '_' for the same.
func moduleName(file string) string {
	name, _, _ := strings.Cut(file, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// resolve returns the modules and all they depend on, each after its dependencies. A name in required must be there; one in
// wanted is passed over where the kernel has no file for it.
func (s *moduleSet) resolve(required, wanted []string) ([]module, error) {
	var out []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] || s.builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := s.path[name]
		if !ok {
			return fmt.Errorf("module %s: %w", name, ErrNoModule)
		}
		data, err := readModule(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		deps, err := moduleDeps(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := visit(d); err != nil {
				return err
			}
		}
		out = append(out, module{name, data})
		return nil
	}
	for _, n := range wanted {
		if s.path[n] == "" {
			continue
		}
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	for _, n := range required {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleDeps reads the "depends=a,b" line of a module's .modinfo section, which modpost writes.
func moduleDeps(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for line := range strings.SplitSeq(string(info), "\x00") {
		list, ok := strings.CutPrefix(line, "depends=")
		if !ok || list == "" {
			continue
		}
		for d := range strings.SplitSeq(list, ",") {
			deps = append(deps, moduleName(d))
		}
	}
	return deps, nil
}

// readModule reads a module, with the help of the compressor's own program where the distribution compresses them.
func readModule(path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		return exec.Command("xz", "-dc", path).Output()
	case ".zst":
		return exec.Command("zstd", "-dc", path).Output()
	case ".gz":
		return exec.Command("gzip", "-dc", path).Output()
	}
	return nil, fmt.Errorf("%s: unknown compression", path)
}
