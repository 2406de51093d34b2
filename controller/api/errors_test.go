package api

import (
	"errors"
	"fmt"
	"testing"
)

func TestCodesAreTheirOwn(t *testing.T) {
	seen := map[Code]bool{CodeFailed: true}
	for _, k := range kinds {
		if seen[k.code] || k.status < 400 {
			t.Errorf("%q: used twice, or no error status (%d)", k.code, k.status)
		}
		seen[k.code] = true
		e := NewError(fmt.Errorf("attach: VM x: %w: do this", k.err))
		if e.Code != k.code || !errors.Is(e, k.err) || e.Error() != "attach: VM x: "+k.err.Error()+": do this" {
			t.Errorf("%v became %+v", k.err, e)
		}
	}
}

// An error that is a usage error too ends in exit code 2, whatever else it is.
func TestUsageGoesFirst(t *testing.T) {
	if e := NewError(fmt.Errorf("%w and %w", ErrTaken, ErrUsage)); e.Code != "usage" {
		t.Errorf("got %q", e.Code)
	}
	if e := NewError(errors.New("anything")); e.Code != CodeFailed || errors.Unwrap(e) != nil {
		t.Errorf("got %+v", e)
	}
}
