package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rscctl/rscctl/test/netnstest"
)

// totals is what all stages did.
type totals struct {
	passed, failed int
	skips          []skip
	bad            map[string]bool // stages with a failure of their own
	ran            map[string]bool // tests that passed on this kernel, by test's key
	inVM           map[string]bool // tests that passed in the VM of test/hostvm
}

// skip is a test that one stage left out.
type skip struct{ stage, pkg, test, why string }

func (s skip) key() string { return key(s.pkg, s.test) }

// key names a test. A package may run twice in the VM, the second time under a mark (PACKAGE@packet).
func key(pkg, test string) string {
	pkg, _, _ = strings.Cut(pkg, "@")
	return pkg + " " + test
}

// vmStages are the stages that run in the VM of test/hostvm. What they leave out is no hole: the VM has a second kernel and less
// around it, and runs the tests once more, not first. A test that this kernel left to it is looked up in inVM.
var vmStages = []string{"hostvm", "allvm", "nested", "systemd"}

func newTotals() *totals {
	return &totals{bad: map[string]bool{}, ran: map[string]bool{}, inVM: map[string]bool{}}
}

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
}

// read takes in the events of one stage.
func (t *totals) read(stage string, r io.Reader) error {
	passed := t.ran
	if slices.Contains(vmStages, stage) {
		passed = t.inVM
	}
	output := map[string]string{}     // by key, of the tests that have not ended
	failures := map[string]struct{}{} // packages with a test that failed
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // a program's own words in between
		}
		k := e.Package + " " + e.Test
		switch {
		case e.Action == "output" && e.Test != "":
			output[k] += e.Output
			continue
		case e.Action == "fail" && e.Test == "":
			// A package fails with its tests; alone when it does not compile, crashes or runs out of time.
			if _, told := failures[e.Package]; !told {
				t.failed++
			}
			t.bad[stage] = true
			continue
		case e.Test == "":
			continue
		}
		switch e.Action {
		case "pass":
			t.passed++
			passed[key(e.Package, e.Test)] = true
		case "fail":
			t.failed++
			failures[e.Package] = struct{}{}
		case "skip":
			t.skips = append(t.skips, skip{stage, e.Package, e.Test, reason(output[k])})
		default:
			continue
		}
		delete(output, k)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("stage %s: %w", stage, err)
	}
	return nil
}

// stageFailed says that the stage's command ended with an error; without a failure among its events that is one of its own.
func (t *totals) stageFailed(stage string) {
	if !t.bad[stage] {
		t.failed++
		t.bad[stage] = true
	}
}

// elsewhere is true for a test that some stage has run.
func (t *totals) elsewhere(s skip) bool { return t.ran[s.key()] || t.inVM[s.key()] }

// hole is true for a test that no stage has run on this kernel and that does not say itself why it may be left out. One that was
// left to the VM must have passed there.
func (t *totals) hole(s skip) bool {
	switch {
	case slices.Contains(vmStages, s.stage):
		return false
	case strings.HasPrefix(s.why, netnstest.ToVM):
		return !t.inVM[s.key()]
	}
	return !t.ran[s.key()] && !strings.HasPrefix(s.why, "allowed:")
}

// report prints the skips that no other stage makes up for, then the sums, and returns whether the run failed.
func (t *totals) report(w io.Writer, forbidden bool) (bad bool) {
	type group struct{ stage, pkg, why string }
	var order []group
	names := map[group][]string{}
	made := 0
	for _, s := range t.skips {
		if t.elsewhere(s) && !t.hole(s) {
			made++
			continue
		}
		g := group{s.stage, s.pkg, s.why}
		if names[g] == nil {
			order = append(order, g)
		}
		names[g] = append(names[g], s.test)
	}
	fmt.Fprintf(w, "\nskipped: %d, of which another stage ran %d\n", len(t.skips), made)
	for _, g := range order {
		fmt.Fprintf(w, "  %s: %s: %s (%s)\n", g.stage, g.pkg, g.why, strings.Join(names[g], ", "))
	}
	bad = t.failed > 0 || len(t.bad) > 0
	for _, s := range t.skips {
		if forbidden && t.hole(s) {
			fmt.Fprintf(w, "skipping is forbidden here: %s: %s: %s\n", s.stage, s.key(), s.why)
			t.failed++
			bad = true
		}
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, len(t.skips))
	return bad
}
