package report

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
)

// shown is every name of a counter that stats can show, with one VM that has counted everything.
func shown(t *testing.T) map[string]bool {
	t.Helper()
	s := datapath.Snapshot{Ports: []datapath.PortSnapshot{{Index: 1}}}
	for r := range flowtable.NumReasons {
		p := &s.Ports[0]
		p.Ledger.Passed[r], p.Ledger.Sealed[r], p.Ledger.Dropped[r], p.Counters.TxDropped[r] = 1, 1, 1, 1
	}
	c := vhost.Counters{}
	vm := VM{Index: 1, Port: api.Port{VM: "web"}, TxDropped: map[string]uint64{}, Vhost: c.Named(), TapOutcomes: map[string]uint64{}}
	for _, n := range []string{vhost.TxBadHeader, vhost.TxTooShort, vhost.TxTooLong, vhost.TxDisabled} {
		vm.TxDropped[n] = 1
	}
	for _, n := range namesIn(t, "../../bpf/tap.go", "tapOutcomeNames") {
		vm.TapOutcomes[n] = 1
	}
	u := Uplink{Name: "eth1", Outcomes: map[string]uint64{}, Host: map[string]uint64{}, Queues: []Queue{{Seen: &s}}, VMs: []VM{vm}}
	for _, n := range namesIn(t, "../../bpf/maps.go", "outcomeNames") {
		u.Outcomes[n] = 1
	}
	for _, n := range namesIn(t, "../../bpf/host.go", "hostOutcomeNames") {
		u.Host[n] = 1
	}
	b, err := json.Marshal(Stats(&Snapshot{Uplinks: []Uplink{u}}, ""))
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	collect(doc, names)
	return names
}

// namesIn reads the strings of a list in a source file: the programs' counters can be read only where the programs run.
func namesIn(t *testing.T, file, list string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "var "+list+" = [...]string{")
	body, _, found := strings.Cut(rest, "\n}")
	for _, m := range regexp.MustCompile(`(?m)^\t"(\w+)"`).FindAllStringSubmatch(body, -1) {
		names = append(names, m[1])
	}
	if !found || len(names) == 0 {
		t.Fatalf("%s: no names in %s", file, list)
	}
	return names
}

// collect gathers the keys of objects, but for those that stand for an interface's queue.
func collect(v any, names map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if !strings.Contains(k, "/") {
				names[k] = true
			}
			collect(x, names)
		}
	case []any:
		for _, x := range v {
			collect(x, names)
		}
	}
}

// What a document says of itself and its subjects is no counter.
var notCounters = []string{"schema", "vms", "queues", "vm", "iface", "id", "worker", "chunk_size", "le", "count", "health", "state", "reasons"}

var quoted = regexp.MustCompile("`([a-z0-9_]+)`")

// Every counter can be seen, and what it means stands in docs/counters.md: a name that stats shows is explained there, and a
// name that is explained there is shown.
func TestEveryCounterIsInTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/counters.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range quoted.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = true
	}
	names := shown(t)
	for n := range names {
		if !documented[n] && !slices.Contains(notCounters, n) {
			t.Errorf("%s is shown by stats and stands nowhere in docs/counters.md", n)
		}
	}
	// The document also speaks of the profiles, and of the verdicts, which flows shows: "ok" is the only one that is no reason.
	for n := range documented {
		if !names[n] && !slices.Contains([]string{"ok", "gro", "rsc"}, n) {
			t.Errorf("docs/counters.md explains %s, which stats does not show", n)
		}
	}
}
