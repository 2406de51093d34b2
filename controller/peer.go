package controller

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// groupsOf reads the supplementary groups of a process; nil when it is gone.
func groupsOf(pid int) []uint32 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), "Groups:")
		if !ok {
			continue
		}
		var out []uint32
		for _, w := range strings.Fields(rest) {
			if n, err := strconv.ParseUint(w, 10, 32); err == nil {
				out = append(out, uint32(n))
			}
		}
		return out
	}
	return nil
}
