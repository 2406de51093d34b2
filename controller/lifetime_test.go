package controller

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/xsk"
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
		var first, last use
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
		for end := time.Now().Add(10 * time.Second); last.moreThan(first); last = inUse(t) {
			if time.Now().After(end) {
				t.Errorf("%+v after the first round, %+v after the last", first, last)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	})
}

// use is what a process has.
type use struct {
	goroutines, descriptors int
	shared                  int // mappings: rings, tables of the kernel, guest memory
	private                 int // bytes that can be written, the runtime's heap among them
}

// moreThan: the heap may have grown, by less than the packet buffers of four queues. What leaks in each of eight rounds is seven.
func (u use) moreThan(w use) bool {
	return u.goroutines > w.goroutines || u.descriptors > w.descriptors || u.shared > w.shared || u.private >= w.private+4*xsk.QueueChunks*2048
}

func inUse(t *testing.T) (u use) {
	t.Helper()
	u.goroutines = runtime.NumGoroutine()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(fds)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to int
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil && !strings.Contains(line, "[vsyscall]") {
			t.Fatalf("%q: %v", line, err)
		}
		switch {
		case strings.HasSuffix(mode, "s"):
			u.shared++
		case strings.HasPrefix(mode, "rw"):
			u.private += to - from
		}
	}
	return u
}
