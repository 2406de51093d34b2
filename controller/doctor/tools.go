package doctor

import (
	"context"
	"os/exec"
	"runtime"
	"time"
)

const (
	toolTime   = 3 * time.Second // for a program to tell its version
	toolGrace  = time.Second     // for its children to close the pipe then
	toolOutput = 4096            // bytes that are read of it
)

// qemuNames are the names that QEMU has on this machine's distributions.
func qemuNames() []string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	return []string{"qemu-system-" + arch, "/usr/libexec/qemu-kvm", "kvm"}
}

// findTool asks the first of the programs that is installed for its version. A program that does not tell one in time counts as
// not installed.
func findTool(ctx context.Context, names []string) Tool {
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if v, ok := askVersion(ctx, path); ok {
			return Tool{Name: name, Version: v}
		}
	}
	return Tool{}
}

func askVersion(ctx context.Context, path string) (Version, bool) {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = toolGrace
	var out bounded
	cmd.Stdout = &out
	if cmd.Run() != nil {
		return Version{}, false
	}
	return parseVersion(string(out))
}

// bounded keeps the first bytes of what is written.
type bounded []byte

func (b *bounded) Write(p []byte) (int, error) {
	*b = append(*b, p[:min(len(p), toolOutput-len(*b))]...)
	return len(p), nil
}
