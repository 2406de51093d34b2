package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// List returns the names in Dir, sorted; none when the folder does not exist.
func List() ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// ByFile finds the name in Dir whose namespace satisfies match, which is called with each one open; "" if none does.
// Entries that are not namespaces (empty files of dead mounts) are passed over.
func ByFile(match func(n *NS) bool) (string, error) {
	names, err := List()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		n, err := Open(filepath.Join(Dir, name))
		if err != nil {
			continue
		}
		ok := match(n)
		n.Close()
		if ok {
			return name, nil
		}
	}
	return "", nil
}
