package vm

import (
	"slices"
	"testing"
)

// QEMU refuses to count instructions beside processors that run on threads of their own.
func TestOptionsCountByOneThread(t *testing.T) {
	for count, want := range map[bool]string{false: "tcg,thread=multi", true: "tcg,thread=single"} {
		o := Options{Count: count}
		o.defaults()
		args := o.args("console")
		if got := after(args, "-accel"); got != want {
			t.Errorf("count %v: -accel %q, want %q", count, got, want)
		}
		if counted := after(args, "-icount") != ""; counted != count {
			t.Errorf("count %v: %q", count, args)
		}
	}
}

// after is the argument behind another one, "": it is not there.
func after(args []string, name string) string {
	i := slices.Index(args, name)
	if i < 0 || i+1 == len(args) {
		return ""
	}
	return args[i+1]
}
