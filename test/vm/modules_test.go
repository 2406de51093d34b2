package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A kernel that has IPv6 built in as a plain yes has neither the module nor a line in modules.builtin.
func TestADriverWithoutAModuleMayBeBuiltIn(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/net/tun.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := set.resolve(nil, wantedModules); err != nil || len(list) != 0 {
		t.Errorf("wanted: %v, %v", list, err)
	}
	if _, err := set.resolve([]string{"tun"}, nil); err != nil {
		t.Errorf("one that is built in: %v", err)
	}
	if _, err := set.resolve([]string{"veth"}, nil); !errors.Is(err, ErrNoModule) {
		t.Errorf("one that must be there: %v", err)
	}
}

// What is a module is still loaded.
func TestAModuleThatIsThereIsRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ipv6.ko"), []byte("no ELF file"), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.resolve(nil, wantedModules); err == nil {
		t.Error("a broken module was passed over")
	}
}
