package controller

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// Every goroutine that an attachment starts is waited for when it ends, and every descriptor and mapping goes with it.
func TestAttachAndDetachLeaveNothingBehind(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP)
	net := netnstest.Pair(t, netnstest.Options{NoIPv6: true, Queues: 2})
	dir := t.TempDir()
	net.B.Do(t, func() error {
		c, err := New(Options{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"), BPFFS: filepath.Join(dir, "bpf"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			return err
		}
		c.restored = true
		defer func() {
			if err := c.shutdown(); err != nil {
				t.Error(err)
			}
		}()
		var first, last [3]int
		for i := range 8 {
			for vm := range 3 {
				name := fmt.Sprintf("vm%d", vm)
				if _, err := c.Attach(api.AttachRequest{Iface: net.B.Dev, VM: name, MAC: fmt.Sprintf("52:54:00:00:00:%02x", vm), VhostUser: filepath.Join(dir, name)}); err != nil {
					return err
				}
			}
			if _, err := c.Detach(api.DetachRequest{Iface: net.B.Dev}); err != nil {
				return err
			}
			if last = inUse(t); i == 0 { // what is made once stays
				first = last
			}
		}
		// The runtime's own threads and the kernel's deferred work end a moment later.
		for end := time.Now().Add(10 * time.Second); last[0] > first[0] || last[1] > first[1] || last[2] > first[2]+4; last = inUse(t) {
			if time.Now().After(end) {
				t.Errorf("goroutines, descriptors, mappings: %v after the first round, %v after the last", first, last)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	})
}

// inUse counts goroutines, open descriptors, and mappings that are larger than a thread's stack guard.
func inUse(t *testing.T) (n [3]int) {
	t.Helper()
	n[0] = runtime.NumGoroutine()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n[1] = len(fds)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range maps {
		if b == '\n' {
			n[2]++
		}
	}
	return n
}
