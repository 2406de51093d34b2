package netnstest

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// recorder is a test that remembers how it was ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(f string, args ...any) {
	r.skipped = fmt.Sprintf(f, args...)
	runtime.Goexit()
}
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed = fmt.Sprintf(f, args...)
	runtime.Goexit()
}

func TestASkipNamesAllThatIsMissing(t *testing.T) {
	fails := func(name, why string) Requirement {
		return Requirement{Name: name, Check: func() error { return errors.New(why) }}
	}
	there := Requirement{Name: "something", Check: func() error { return nil }}
	if got, _ := unmet([]Requirement{there, fails("a bridge", "no module"), fails("a tap", "no file"), there}); got !=
		"a bridge: no module; a tap: no file" {
		t.Errorf("missing: %q", got)
	}
	if got, _ := unmet([]Requirement{fails(Root.Name, "not permitted"), fails("a tap", "no file")}); strings.Contains(got, "tap") {
		t.Errorf("not root, and yet it says %q", got)
	}
	if got, _ := unmet([]Requirement{there}); got != "" {
		t.Errorf("nothing is missing, and yet it says %q", got)
	}
}

func TestASkipIsAFailureWhereForbidden(t *testing.T) {
	for value, forbidden := range map[string]bool{"": false, "0": false, "1": true} {
		t.Setenv(NoSkipEnv, value)
		r := &recorder{TB: t}
		var wg sync.WaitGroup
		wg.Go(func() { Skip(r, "a tap: no file") })
		wg.Wait()
		got, other := r.skipped, r.failed
		if forbidden {
			got, other = r.failed, r.skipped
		}
		if !strings.Contains(got, "a tap: no file") || other != "" {
			t.Errorf("%s=%q: skipped %q, failed %q", NoSkipEnv, value, r.skipped, r.failed)
		}
	}
}

// What only the VM has may be left to it, by a run that has the VM do its part, and never together with something else.
func TestATestIsLeftToTheVMOnlyWhereThatRuns(t *testing.T) {
	lacks := func(name string, inVM bool) Requirement {
		return Requirement{Name: name, Check: func() error { return errors.New("no") }, InVM: inVM}
	}
	for _, c := range []struct {
		hostVM string
		needs  []Requirement
		left   bool
	}{
		{"1", []Requirement{lacks("a", true)}, true},
		{"", []Requirement{lacks("a", true)}, false},
		{"1", []Requirement{lacks("a", true), lacks("b", false)}, false},
	} {
		t.Setenv(NoSkipEnv, "1")
		t.Setenv(HostVMEnv, c.hostVM)
		r := &recorder{TB: t}
		var wg sync.WaitGroup
		wg.Go(func() { need(r, c.needs) })
		wg.Wait()
		if left := strings.HasPrefix(r.skipped, ToVM); left != c.left || left == (r.failed != "") {
			t.Errorf("%+v: skipped %q, failed %q", c, r.skipped, r.failed)
		}
	}
}

func TestKernelVersionsCompare(t *testing.T) {
	if err := kernelAtLeast(3, 0); err != nil {
		t.Error(err)
	}
	if err := kernelAtLeast(999, 0); err == nil {
		t.Error("Linux 999 is not out yet")
	}
}
