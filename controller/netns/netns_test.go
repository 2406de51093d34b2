package netns_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/rscctl/rscctl/controller/netns"
	"github.com/rscctl/rscctl/test/netnstest"
	"golang.org/x/sys/unix"
)

func threadNS(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenByNameAndByPathIsTheSameNamespace(t *testing.T) {
	ns := netnstest.Namespace(t)
	inside := func(n *netns.NS) (s string) {
		t.Helper()
		if err := n.Do(func() error { s = threadNS(t); return nil }); err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := inside(ns.NS)
	if want == threadNS(t) {
		t.Error("it is ours")
	}
	for _, by := range []string{ns.Name(), ns.Path()} {
		o, err := netns.Open(by)
		if err != nil {
			t.Fatal(err)
		}
		if got := inside(o); got != want {
			t.Errorf("%s: %s, want %s", by, got, want)
		}
		o.Close()
	}
}

func TestDoIsInsideAndTheCallerIsNot(t *testing.T) {
	ns := netnstest.Namespace(t)
	before := threadNS(t)
	var inside string
	var ln net.Listener
	err := ns.Do(func() (err error) {
		inside = threadNS(t)
		ln, err = net.Listen("unix", "@rscctl-netns-test")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if inside == before || threadNS(t) != before {
		t.Errorf("before %s, inside %s, after %s", before, inside, threadNS(t))
	}
	if _, err := net.Dial("unix", "@rscctl-netns-test"); err == nil {
		t.Error("the socket opened inside is reachable from outside")
	}
}

func TestNoThreadStaysInside(t *testing.T) {
	ns := netnstest.Namespace(t)
	before := threadNS(t)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 20 {
				if err := ns.Do(func() error { runtime.Gosched(); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if s, err := os.Readlink(task); err == nil && s != before {
			t.Errorf("%s is in %s", task, s)
		}
	}
}

func TestDoPassesOnErrorsPanicsAndGoexit(t *testing.T) {
	ns := netnstest.Namespace(t)
	if err := ns.Do(func() error { return os.ErrClosed }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error: %v", err)
	}
	func() {
		defer func() {
			if v := recover(); v != "oops" {
				t.Errorf("panic: %v", v)
			}
		}()
		_ = ns.Do(func() error { panic("oops") })
	}()
	ended := make(chan bool, 1)
	go func() {
		after := false
		defer func() { ended <- after }()
		_ = ns.Do(func() error { runtime.Goexit(); return nil })
		after = true
	}()
	if <-ended {
		t.Error("the caller went on after Goexit")
	}
}

// A function that moves its thread elsewhere for good must cost only that thread.
func TestAStrayThreadComesHome(t *testing.T) {
	ns, other := netnstest.Namespace(t), (*netnstest.NS)(nil)
	t.Run("other", func(t *testing.T) {
		other = netnstest.Namespace(t)
		err := ns.Do(func() error { return unix.Setns(other.FD(), unix.CLONE_NEWNET) })
		if err != nil {
			t.Fatal(err)
		}
	})
	if s := threadNS(t); s == "" {
		t.Error("no namespace")
	}
}

func TestWhatIsNotANamespaceIsRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a\x00b", strings.Repeat("x", 256)} {
		if _, err := netns.Open(name); !errors.Is(err, netns.ErrBadName) {
			t.Errorf("Open(%q): %v", name, err)
		}
	}
	for path, want := range map[string]error{
		"/proc/self/ns/mnt":   netns.ErrNotNetNS,
		"/dev/null":           netns.ErrNotNetNS,
		"/nonexistent/ns":     netns.ErrNotFound,
		"rscnst-never-made-0": netns.ErrNotFound,
	} {
		if _, err := netns.Open(path); !errors.Is(err, want) {
			t.Errorf("Open(%s): %v, want %v", path, err, want)
		}
	}
}
