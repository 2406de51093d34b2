package user

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
)

// FaultError makes an error of a panic, given what recover returned: ErrInternal,
// with the place. It is for the top of a goroutine that serves one guest, where a
// mistake of ours must end that guest's port and not the process. Call it from the
// deferred function itself.
func FaultError(r any) error {
	text := strings.ReplaceAll(fmt.Sprint(r), "\n", " ")
	return fmt.Errorf("%w: %s (%s)", ErrInternal, text, origin())
}

// caught makes an error of a panic. It is to be deferred itself.
func caught(err *error) {
	if r := recover(); r != nil {
		*err = FaultError(r)
	}
}

// origin is where the panic that is being recovered came from: what called the
// runtime. A deferred function may have panicked again, with the first panic still
// on the stack below it: so the deepest one counts.
func origin() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	place := "place unknown"
	for inRuntime := false; ; {
		f, more := frames.Next()
		switch ours := !strings.HasPrefix(f.Function, "runtime."); {
		case ours && inRuntime:
			place = fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
			inRuntime = false
		case !ours:
			inRuntime = true
		}
		if !more {
			return place
		}
	}
}
