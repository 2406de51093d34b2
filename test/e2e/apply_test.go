package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// What export writes describes what there is, across a restart too; what is changed in it is changed by apply, a policy without
// the VM's port noticing; and what is taken out of it is pruned.
func TestWhatIsExportedIsApplied(t *testing.T) {
	r, _ := oneTapVM(t, netnstest.Options{NoIPv6: true}, "--bypass-filters")
	r.attach("user", macB, "--hold", "20us", "--isolate")
	file := filepath.Join(r.dir, "vms.yaml")
	export := func() string {
		t.Helper()
		text := r.must("export")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return text
	}
	apply := func(want string, args ...string) {
		t.Helper()
		if out := r.must(append([]string{"apply", "-f", file}, args...)...); strings.TrimSpace(out) != want {
			t.Errorf("apply %v: %s, want %s", args, out, want)
		}
	}
	text := export()
	apply("nothing to do", "--prune")
	r.stop()
	r.start()
	if again := export(); again != text {
		t.Errorf("exported\n%s after a restart\n%s", text, again)
	}
	apply("nothing to do", "--prune")

	if err := os.WriteFile(file, []byte(strings.Replace(text, "hold: 20us", "hold: 30us", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const said = "policy of user: hold: 20us -> 30us"
	apply(said, "--dry-run")
	apply(said)
	apply("nothing to do")
	var p api.PolicyResponse
	if r.json(&p, "policy", "get", "user"); p.Policy.HoldNS != 30000 {
		t.Errorf("policy %+v", p.Policy)
	}
	before, _, _ := strings.Cut(text, "  - name: vm0")
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	apply("policy of user: hold: 30us -> 20us")
	apply("detach vm0 from "+r.net.B.Dev, "--prune")
	var st api.Status
	if r.json(&st, "status"); len(st.Interfaces) != 1 || len(st.Interfaces[0].Ports) != 1 || st.Interfaces[0].Ports[0].VM != "user" {
		t.Errorf("status %+v", st.Interfaces)
	}
	moved := regexp.MustCompile(`vhost-user: \S+`).ReplaceAllString(before, "vhost-user: "+filepath.Join(r.dir, "no", "x.sock"))
	if err := os.WriteFile(file, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := r.cli("apply", "-f", file, "--dry-run"); code != 1 || !strings.Contains(out, "does not exist") || !strings.Contains(out, "1 step failed") {
		t.Errorf("a change that would be refused, tried: exit %d: %s", code, out)
	}
	// A file that asks for what the host has not changes nothing of the rest.
	if err := os.WriteFile(file, []byte(before+"  - {name: x, iface: nosuch0, mac: \"52:54:00:00:00:77\", vhost-user: /run/x.sock}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := r.cli("apply", "-f", file); code != 1 || !strings.Contains(out, "nosuch0") || !strings.Contains(out, "1 step failed") {
		t.Errorf("exit %d: %s", code, out)
	}
}
