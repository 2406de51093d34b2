package netdev_test

import (
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/rscctl/rscctl/test/netnstest"

	"golang.org/x/sys/unix"
)

// ebtablesRule writes the table filter of ebtables as its tool would: the chains INPUT, FORWARD and OUTPUT, which accept,
// with or without one rule in FORWARD (linux/netfilter_bridge/ebtables.h, on a 64-bit machine).
func ebtablesRule(t *testing.T, rule bool) {
	t.Helper()
	modules, err := os.ReadFile("/proc/modules")
	if err != nil || !strings.Contains(string(modules), "ebtable_filter ") {
		netnstest.SkipToVM(t, "legacy ebtables (module ebtable_filter)")
	}
	const accept = 0xffffffff // EBT_ACCEPT
	count := uint32(0)
	chain := func(name string, rules uint32) []byte {
		c := make([]byte, 48)
		copy(c[4:], name)
		binary.NativeEndian.PutUint32(c[36:], count)
		binary.NativeEndian.PutUint32(c[40:], accept)
		binary.NativeEndian.PutUint32(c[44:], rules)
		count += rules
		return c
	}
	var r []byte
	rules := uint32(0)
	if rule {
		rules = 1
		r = make([]byte, 112+48)
		for at, v := range map[int]uint32{0: 1 | 2 /* a rule, of any protocol */, 100: 112, 104: 112, 108: 160, 112 + 32: 8, 112 + 40: accept} {
			binary.NativeEndian.PutUint32(r[at:], v)
		}
		copy(r[112:], "standard")
	}
	entries := slices.Concat(chain("INPUT", 0), chain("FORWARD", rules), r, chain("OUTPUT", 0))
	// The kernel reads the entries where this says they are; a slice's memory does not move.
	base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(entries))))
	head := make([]byte, 120)
	copy(head, "filter")
	binary.NativeEndian.PutUint32(head[32:], 1<<1|1<<2|1<<3)
	binary.NativeEndian.PutUint32(head[36:], rules)
	binary.NativeEndian.PutUint32(head[40:], uint32(len(entries)))
	for hook, off := range map[int]int{1: 0, 2: 48, 3: 96 + len(r)} {
		binary.NativeEndian.PutUint64(head[48+8*hook:], base+uint64(off))
	}
	binary.NativeEndian.PutUint64(head[112:], base)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const set = 128 // EBT_SO_SET_ENTRIES
	err = unix.SetsockoptString(fd, unix.SOL_IP, set, string(append(head, entries...)))
	runtime.KeepAlive(entries)
	if err != nil {
		t.Fatalf("ebtables: %v", err)
	}
}

func TestLegacyEbtablesOnTheWayAreSaid(t *testing.T) {
	for _, rule := range []bool{false, true} {
		b := makeBridged(t, nil)
		b.do(t, func() error {
			b.forwarding(t)
			ebtablesRule(t, rule)
			var words []string
			if rule {
				words = []string{"ebtables", "table filter", "br0"}
			}
			wantSaid(t, b.bypassed(t), words...)
			return nil
		})
	}
}
