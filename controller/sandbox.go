package controller

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
)

// mountInfo tells what the process sees of the host's file systems (proc(5)).
const mountInfo = "/proc/self/mountinfo"

// apiMounts hold no sockets of anybody's.
var apiMounts = []string{"/dev", "/proc", "/sys"}

// checkFolder finds out before anything is changed whether a socket can be made, and says where one can when a sandbox, such as that of
// a systemd unit, shows the folder read-only or not at all.
func checkFolder(cfg vhost.Config, own ...string) error {
	err := vhost.CheckSocket(cfg)
	if dir := filepath.Dir(cfg.Socket); err == nil && !cfg.Connect {
		if bad := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); bad != nil {
			err = fmt.Errorf("socket %s: folder %s: %w", cfg.Socket, dir, bad)
		}
	}
	if err == nil || errors.Is(err, vhost.ErrConfig) || errors.Is(err, vhost.ErrSocketInUse) {
		return withRemedy(err)
	}
	b, cannot := os.ReadFile(mountInfo)
	if cannot != nil {
		return withRemedy(err)
	}
	if folders, boxed := writable(string(b), own); boxed {
		return fmt.Errorf("%w: this service may make sockets below %s only: choose a path there, or add ReadWritePaths=%s to the unit ('systemctl edit rscctl') and reload it",
			err, strings.Join(folders, ", "), filepath.Dir(cfg.Socket))
	}
	return withRemedy(err)
}

// writable lists the mounts of a mountinfo text that are writable where the root is not, without the API file systems and without the
// folders own, which are not for others' sockets. boxed is false where the root is writable: no sandbox decides then.
func writable(text string, own []string) (folders []string, boxed bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line) // id, parent, device, root, mount point, options, ...
		if len(f) < 6 {
			continue
		}
		at := unescaped.Replace(f[4])
		readOnly := slices.Contains(strings.Split(f[5], ","), "ro")
		below := func(top string) bool { return top != "" && (at == top || strings.HasPrefix(at, top+"/")) }
		switch {
		case at == "/":
			boxed = readOnly
		case !readOnly && !slices.ContainsFunc(apiMounts, below) && !slices.ContainsFunc(own, below):
			folders = append(folders, at)
		}
	}
	slices.Sort(folders)
	if len(folders) == 0 {
		folders = []string{"no folder"}
	}
	return slices.Compact(folders), boxed
}

// unescaped undoes how mountinfo writes what would end a field.
var unescaped = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
