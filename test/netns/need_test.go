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
	fails := func(name, why string) Requirement { return Requirement{name, func() error { return errors.New(why) }} }
	there := Requirement{"something", func() error { return nil }}
	if got := unmet([]Requirement{there, fails("a bridge", "no module"), fails("a tap", "no file"), there}); got !=
		"a bridge: no module; a tap: no file" {
		t.Errorf("missing: %q", got)
	}
	if got := unmet([]Requirement{fails(Root.Name, "not permitted"), fails("a tap", "no file")}); strings.Contains(got, "tap") {
		t.Errorf("not root, and yet it says %q", got)
	}
	if got := unmet([]Requirement{there}); got != "" {
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

func TestKernelVersionsCompare(t *testing.T) {
	if err := kernelAtLeast(3, 0); err != nil {
		t.Error(err)
	}
	if err := kernelAtLeast(999, 0); err == nil {
		t.Error("Linux 999 is not out yet")
	}
}
