package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
)

// The alerts and the dashboard ask for metrics and reasons that there are.
func TestAlertsAndDashboardNameWhatThereIs(t *testing.T) {
	text := scrape(t, sample())
	reasons := map[string]bool{}
	for r := range flowtable.Reason(flowtable.NumReasons) {
		reasons[r.String()] = true
	}
	metric, reason := regexp.MustCompile(`\b(rscctl|process)_[a-z0-9_]+`), regexp.MustCompile(`reason=~?\\?"([a-z_|]+)`)
	for _, path := range []string{"../../packaging/prometheus/rscctl.rules.yml", "../../packaging/grafana/rscctl.json"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names := metric.FindAllString(string(b), -1)
		for _, name := range names {
			if !strings.Contains(text, "\n"+name+"{") && !strings.Contains(text, "\n"+name+" ") {
				t.Errorf("%s: no metric %s", path, name)
			}
		}
		if len(names) < 8 {
			t.Errorf("%s: %d names: this looked at nothing", path, len(names))
		}
		for _, m := range reason.FindAllStringSubmatch(string(b), -1) {
			for name := range strings.SplitSeq(m[1], "|") {
				if !reasons[name] {
					t.Errorf("%s: no reason %s", path, name)
				}
			}
		}
	}
}

// Every metric is in operations.md, by its name or by the beginning of it, and what is there is a metric.
func TestTheDocumentedMetricsAreThoseThatThereAre(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## Metrics\n")
	section, _, _ = strings.Cut(section, "\n## ")
	metrics := regexp.MustCompile(`(?m)^# TYPE (rscctl_\S+)`).FindAllStringSubmatch(scrape(t, sample()), -1)
	found := map[string]bool{}
	for _, m := range regexp.MustCompile("`(rscctl_[a-z_]+\\*?)").FindAllStringSubmatch(section, -1) {
		matched := 0
		for _, metric := range metrics {
			prefix, many := strings.CutSuffix(m[1], "*")
			if metric[1] == m[1] || many && strings.HasPrefix(metric[1], prefix) {
				matched, found[metric[1]] = matched+1, true
			}
		}
		if matched == 0 {
			t.Errorf("operations.md: no metric %s", m[1])
		}
	}
	for _, metric := range metrics {
		if !found[metric[1]] {
			t.Errorf("operations.md does not have %s", metric[1])
		}
	}
}

// What Grafana needs of a dashboard: an id for each panel, a place that no other has, and something to show.
func TestTheDashboardsPanelsHaveTheirPlaces(t *testing.T) {
	b, err := os.ReadFile("../../packaging/grafana/rscctl.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil || d.Title == "" || d.UID == "" || d.SchemaVersion == 0 || len(d.Panels) == 0 {
		t.Fatalf("%v: %+v", err, d)
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%+v", p)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		for _, q := range p.Targets {
			if q.RefID == "" || q.Expr == "" {
				t.Errorf("%s: %+v", p.Title, q)
			}
		}
	}
}
