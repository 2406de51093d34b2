package guestmem

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A process has 128 TiB of address space and vm.max_map_count mappings. When either is used up, the runtime cannot grow a
// heap or a stack, and the process dies for all guests. Each mapping keeps its file open, and without descriptors no other guest
// gets anything.
const (
	budgetBytes  = 64 << 40
	fewRegions   = 8     // what a front-end without memory slots can have at most
	defaultCount = 65530 // of vm.max_map_count
)

// Budget bounds what all tables that share it have mapped together, whoever their front-ends are: one that asks for
// hundreds of regions gets them from the first half of the machine's limit on mappings, while tables of few regions, as
// most guests have, may use up to three quarters of it. Safe for concurrent use; nil is no bound.
type Budget struct {
	many, few int
	bytes     uint64

	mu        sync.Mutex
	maps      int
	usedBytes uint64
}

// NewBudget takes its limits from the machine: the smaller of what the process may map and the descriptors that it may have open,
// as every mapping has one.
func NewBudget() *Budget {
	count := defaultCount
	if b, err := os.ReadFile("/proc/sys/vm/max_map_count"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			count = n
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur < uint64(count) {
		count = int(files.Cur)
	}
	return &Budget{many: count / 2, few: count / 4 * 3, bytes: budgetBytes}
}

// take books one mapping for a table that has so many regions already. The error is ErrTooMuch.
func (b *Budget) take(size uint64, regions int) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := b.few
	if regions >= fewRegions {
		limit = b.many
	}
	if b.maps >= limit || size > b.bytes-b.usedBytes {
		return ErrTooMuch
	}
	b.maps++
	b.usedBytes += size
	return nil
}

func (b *Budget) giveBack(size uint64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.maps--
	b.usedBytes -= size
}
