// Package packaging has the tests of what 'make package' makes, as far as they need no running systemd; test/systemd has the others.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// need skips where a program is missing; test/vm/setup.sh package installs those that a Debian lacks.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		netnstest.Skip(t, "the program "+program+" (test/vm/setup.sh package)")
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// unit writes the service, with a drop-in of the examples or none, where systemd-analyze can read it: the program that it starts is one
// that is there.
func unit(t *testing.T, dropIn string) (path string) {
	t.Helper()
	dir := t.TempDir()
	for from, to := range map[string]string{"systemd/rscctl.service": "rscctl.service", "systemd/" + dropIn: "rscctl.service.d/" + dropIn} {
		if to == "rscctl.service.d/" {
			continue
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(dir, to)
		text := strings.ReplaceAll(string(b), "/usr/bin/rscctl", "/bin/true")
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "rscctl.service")
}

// systemd finds nothing to say about the unit, alone and with each of the drop-ins that the package has as examples.
func TestSystemdTakesTheUnit(t *testing.T) {
	need(t, "systemd-analyze")
	for _, dropIn := range []string{"", "metrics.conf", "sockets.conf", "cpus.conf"} {
		if out := run(t, "systemd-analyze", "verify", "--man=no", unit(t, dropIn)); out != "" {
			t.Errorf("with %q:\n%s", dropIn, out)
		}
	}
}

// systemd's own measure of what a unit that was taken over could still do: 0 to 10, here in tenths.
func TestTheUnitExposesLittle(t *testing.T) {
	need(t, "systemd-analyze")
	run(t, "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", unit(t, ""))
}

// settings are the unit's, by name, in the order of its lines.
func settings(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("systemd/rscctl.service")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			set[k] = append(set[k], v)
		}
	}
	return set
}

// What the sandbox rests on stands in the unit; a capability more is one that docs/security.md has a line for.
func TestTheUnitKeepsItsPromises(t *testing.T) {
	doc, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	set := settings(t)
	for key, want := range map[string]string{
		"Type": "notify", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "always", "RuntimeDirectoryPreserve": "yes",
		"FileDescriptorStoreMax": "8192", "WatchdogSec": "10s", "DevicePolicy": "closed",
	} {
		if got := set[key]; len(got) != 1 || got[0] != want {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
	if got := set["DeviceAllow"]; !slices.Equal(got, []string{"/dev/vhost-net rw", "/dev/net/tun rw"}) {
		t.Errorf("devices: %q", got)
	}
	if start, reload := set["ExecStart"], set["ExecReload"]; len(start) != 1 || len(reload) != 1 ||
		reload[0] != strings.Replace(start[0], " run ", " run --replace --background ", 1) {
		t.Errorf("a reload is %q: not the process of %q beside the one that runs", reload, start)
	}
	caps := strings.Fields(strings.Join(set["CapabilityBoundingSet"], " "))
	if len(caps) != 6 {
		t.Errorf("%d capabilities: %q", len(caps), caps)
	}
	for _, c := range caps {
		if !strings.Contains(string(doc), "| `"+c+"` |") {
			t.Errorf("docs/security.md does not say what %s is for", c)
		}
		if c == "CAP_SYS_ADMIN" || c == "CAP_SYS_PTRACE" || strings.HasPrefix(c, "CAP_DAC") {
			t.Errorf("%s is as good as root", c)
		}
	}
}
