package e2e

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// A device on top of another one is refused by one line, and the command that the line names is the right one.
func TestStackedDevicesAreRefusedWithACommandThatWorks(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.bridge()
	flags := []string{"--vm", "x", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "x.sock")}
	refused := func(dev string) string {
		t.Helper()
		out, code := r.cli(append([]string{"attach", dev}, flags...)...)
		if code != 1 || strings.Count(strings.TrimSpace(out), "\n") != 0 || !strings.Contains(out, dev) {
			t.Errorf("%s: exit %d, want 1 and one line that names it: %s", dev, code, out)
		}
		r.untouched(t)
		return out
	}
	refused("lo")
	r.net.B.Output(t, "ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789", "dev", r.net.B.Dev)
	refused("vx0")
	said := refused("br0")
	command := regexp.MustCompile(`'rscctl ([^']*)'`).FindStringSubmatch(said)
	if command == nil {
		t.Fatalf("no command in %q", said)
	}
	r.must(append(strings.Fields(command[1]), flags...)...)
	r.must("detach", r.net.B.Dev)
	r.untouched(t)
}
