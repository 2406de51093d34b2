package controller

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
)

// sameUnit refuses an heir that is of another unit of systemd than this process: it would not be the service that systemd goes on with, which
// would start a rival of it.
func sameUnit(pid int) error {
	own, its := unitOf(os.Getpid()), unitOf(pid)
	if own == "" || its == "" || own == its {
		return nil
	}
	return fmt.Errorf("replace: this controller is the service %s, and the new one would be %s: %w: use 'systemctl reload %s'", own, its, api.ErrUsage, own)
}

// unitOf names the service of systemd that a process is of, "" where it is of none, or that is not told.
func unitOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	return serviceIn(string(b))
}

// serviceIn finds the service in the text of /proc/PID/cgroup (cgroups(7)): the innermost, as a service may have groups of its own below.
func serviceIn(groups string) string {
	for line := range strings.Lines(groups) {
		id, where, _ := strings.Cut(strings.TrimSpace(line), ":")
		kind, where, _ := strings.Cut(where, ":")
		if id != "0" && kind != "name=systemd" {
			continue
		}
		for ; where != "/" && where != "." && where != ""; where = path.Dir(where) {
			if name := path.Base(where); strings.HasSuffix(name, ".service") {
				return name
			}
		}
	}
	return ""
}
