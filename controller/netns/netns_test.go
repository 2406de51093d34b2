package netns_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rscctl/rscctl/controller/netns"
	netnstest "github.com/rscctl/rscctl/test/netns"
	"golang.org/x/sys/unix"
)

func make1(t *testing.T) *netns.NS {
	t.Helper()
	netnstest.Need(t)
	ns, err := netns.New(netns.PIDName("rscnst"+strings.ToLower(strings.NewReplacer("/", "").Replace(t.Name())), os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(ns.Name()) })
	return ns
}

func threadNS(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewIsWhatIPNetnsMakes(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("ip"))
	ns := make1(t)
	if ns.Path() != filepath.Join(netns.Dir, ns.Name()) {
		t.Errorf("path %s", ns.Path())
	}
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil || !strings.Contains(string(out), ns.Name()) {
		t.Errorf("ip netns list: %v: %s", err, out)
	}
	if _, err := netns.New(ns.Name()); !errors.Is(err, netns.ErrExists) {
		t.Errorf("a second one: %v", err)
	}
	if err := exec.Command("ip", "netns", "delete", ns.Name()).Run(); err != nil {
		t.Errorf("ip netns delete: %v", err)
	}
	if _, err := netns.Open(ns.Name()); !errors.Is(err, netns.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestOpenByNameAndByPathIsTheSameNamespace(t *testing.T) {
	ns := make1(t)
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for _, by := range []string{ns.Name(), ns.Path()} {
		o, err := netns.Open(by)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := ns.Same(o); err != nil || !same {
			t.Errorf("%s: same %v, %v", by, same, err)
		}
		if same, err := here.Same(o); err != nil || same {
			t.Errorf("%s: it is ours: %v, %v", by, same, err)
		}
		if o.Name() != ns.Name() {
			t.Errorf("%s: name %q", by, o.Name())
		}
		o.Close()
	}
}

func TestDoIsInsideAndTheCallerIsNot(t *testing.T) {
	ns := make1(t)
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
	ns := make1(t)
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
	ns := make1(t)
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
	ns, other := make1(t), (*netns.NS)(nil)
	t.Run("other", func(t *testing.T) {
		other = make1(t)
		err := ns.Do(func() error { return unix.Setns(other.FD(), unix.CLONE_NEWNET) })
		if err != nil {
			t.Fatal(err)
		}
	})
	if s := threadNS(t); s == "" {
		t.Error("no namespace")
	}
}

func TestCommandsStartInsideAndSeeTheSameSys(t *testing.T) {
	ns := make1(t)
	var want string
	if err := ns.Do(func() error { want = threadNS(t); return nil }); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net", "/proc/self/ns/mnt")
	cmd.Stdout = &out
	if err := ns.Run(cmd); err != nil {
		t.Fatal(err)
	}
	mnt, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(out.String()); !slices.Equal(got, []string{want, mnt}) {
		t.Errorf("the child is in %v, want %s and %s", got, want, mnt)
	}
}

func TestWhatIsNotANamespaceIsRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", strings.Repeat("x", 256)} {
		if _, err := netns.New(name); !errors.Is(err, netns.ErrBadName) {
			t.Errorf("New(%q): %v", name, err)
		}
		if err := netns.Remove(name); !errors.Is(err, netns.ErrBadName) {
			t.Errorf("Remove(%q): %v", name, err)
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

func TestLeftoversOfDeadProcessesOnly(t *testing.T) {
	netnstest.Need(t)
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	const prefix = "rscnstleft"
	dead := netns.PIDName(prefix, cmd.Process.Pid)
	living := netns.PIDName(prefix, os.Getpid())
	for _, name := range []string{dead, living} {
		ns, err := netns.New(name)
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		t.Cleanup(func() { _ = netns.Remove(name) })
	}
	got, err := netns.Leftovers(prefix)
	if err != nil || !slices.Equal(got, []string{dead}) {
		t.Errorf("leftovers %v, %v", got, err)
	}
	if got, err := netns.Sweep(prefix); err != nil || !slices.Equal(got, []string{dead}) {
		t.Errorf("swept %v, %v", got, err)
	}
	names, err := netns.List()
	if err != nil || !slices.Contains(names, living) || slices.Contains(names, dead) {
		t.Errorf("left: %v, %v", names, err)
	}
}
