package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

func TestTheReasonIsWhatTheTestSaidWhenItSkipped(t *testing.T) {
	for name, c := range map[string]struct{ output, want string }{
		"alone":                {"=== RUN   TestX\n    a_test.go:4: needs a tap: no file\n--- SKIP: TestX (0.00s)\n", "needs a tap: no file"},
		"a log before":         {"    a_test.go:3: the kernel says no\n    a_test.go:4: allowed: takes minutes\n", "allowed: takes minutes"},
		"a cleanup's log":      {"    a_test.go:4: needs root\n    rig.go:9: the namespace is gone\n", "needs root"},
		"of several lines":     {"    a_test.go:4: needs a tap: one\n        two\n--- SKIP: TestX (0.00s)\n", "needs a tap: one two"},
		"output before it":     {"no newline    a_test.go:6: needs root\n", "needs root"},
		"in words of its own":  {"    a_test.go:4: the race detector allocates\n", "the race detector allocates"},
		"a file within":        {"    a_test.go:4: needs x: open y.go: no such file\n", "needs x: open y.go: no such file"},
		"none":                 {"=== RUN   TestX\n--- SKIP: TestX (0.00s)\n", "no reason given"},
		"a line that is alike": {"    a_test.go:4: needs x\n        b.go: no entry\n", "needs x b.go: no entry"},
	} {
		if got := reason(c.output); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// events are what go test -json prints for tests given as "ACTION PACKAGE TEST TEXT".
func events(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		f := append(strings.SplitN(l, " ", 4), "", "", "")
		if f[3] != "" {
			fmt.Fprintf(&b, `{"Action":"output","Package":%q,"Test":%q,"Output":%q}`+"\n", f[1], f[2], "    x_test.go:3: "+f[3]+"\n")
		}
		fmt.Fprintf(&b, `{"Action":%q,"Package":%q,"Test":%q}`+"\n", f[0], f[1], f[2])
	}
	return b.String()
}

func read(t *testing.T, stages map[string]string) *totals {
	t.Helper()
	got := newTotals()
	for stage, text := range stages {
		if err := got.read(stage, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func TestASkipIsAHoleUnlessTheTestRanOrIsAllowed(t *testing.T) {
	got := read(t, map[string]string{
		"unit": events("pass pkg TestElsewhere", "pass pkg ",
			"skip pkg TestNowhere needs a tap", "skip pkg TestAllowed allowed: takes minutes", "skip pkg TestInTheMiddle not allowed: no root",
			"skip pkg TestInVM "+netnstest.ToVM+"a bridge", "skip pkg TestInVMUnderItsMark "+netnstest.ToVM+"vhost",
			"skip pkg TestNotInVM "+netnstest.ToVM+"a bridge", "skip other TestInVM "+netnstest.ToVM+"a bridge", "skip pkg TestSilent"),
		"race":   events("skip pkg TestElsewhere the race detector allocates"),
		"hostvm": events("pass pkg TestInVM", "pass pkg@packet TestInVMUnderItsMark", "skip pkg TestNowhere needs a tap", "skip pkg TestNotInVM no bridge"),
	})
	var holes []string
	for _, s := range got.skips {
		if got.hole(s) {
			holes = append(holes, s.key())
		}
	}
	want := "pkg TestNowhere, pkg TestInTheMiddle, pkg TestNotInVM, other TestInVM, pkg TestSilent"
	if text := strings.Join(holes, ", "); text != want {
		t.Errorf("holes: %s\nwant:  %s", text, want)
	}
	var out strings.Builder
	if !got.report(&out, true) {
		t.Error("holes where they are forbidden, and yet the run is good")
	}
	if got.report(&out, false); !strings.HasSuffix(out.String(), "\n") {
		t.Error("the last line is not whole")
	}
}

func TestTheSumIsTheLastLine(t *testing.T) {
	for name, c := range map[string]struct {
		events, failed, want string
		bad                  bool
	}{
		"good":                   {events("pass p TestA", "pass p TestA/b", "pass p ", "skip p TestC allowed: x"), "", "2 passed, 0 failed, 1 skipped", false},
		"a test failed":          {events("fail p TestA/b", "fail p TestA", "fail p "), "unit", "0 passed, 2 failed, 0 skipped", true},
		"a package does not run": {events("pass p TestA", "fail p "), "unit", "1 passed, 1 failed, 0 skipped", true},
		"a stage does not run":   {"", "unit", "0 passed, 1 failed, 0 skipped", true},
		"words in between":       {"no event\n" + events("pass p TestA"), "", "1 passed, 0 failed, 0 skipped", false},
	} {
		got := read(t, map[string]string{"unit": c.events})
		if c.failed != "" {
			got.stageFailed(c.failed)
		}
		var out strings.Builder
		bad := got.report(&out, false)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if last := lines[len(lines)-1]; last != c.want || bad != c.bad {
			t.Errorf("%s: %q, bad %v", name, last, bad)
		}
	}
}
