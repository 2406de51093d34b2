package vhost_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// portMapping is where the port has the guest's memory, and how much of it the guest has given out.
type portMapping struct {
	at   uintptr
	used int
}

// mappingOfPort finds the port's mapping of the memory that next, the first byte not given out, is the guest's own view of.
func mappingOfPort(t *testing.T, next []byte) (m portMapping, ok bool) {
	t.Helper()
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(next)))
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	type mapped struct {
		from, to uintptr
		inode    string
	}
	var all []mapped
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.Contains(f[5], "memfd:rscctl-guest") {
			continue
		}
		var r mapped
		if _, err := fmt.Sscanf(f[0], "%x-%x", &r.from, &r.to); err != nil {
			t.Fatal(err)
		}
		r.inode = f[4]
		all = append(all, r)
	}
	for _, r := range all {
		if addr < r.from || addr >= r.to {
			continue
		}
		for _, o := range all {
			if o.inode == r.inode && o.from != r.from {
				return portMapping{at: o.from, used: int(addr - r.from)}, true
			}
		}
	}
	return portMapping{}, false
}

// protect changes what may be done to n bytes.
func protect(at uintptr, n int, prot int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MPROTECT, at, uintptr(n), uintptr(prot)); errno != 0 {
		return errno
	}
	return nil
}
