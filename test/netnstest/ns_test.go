package netnstest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/netns"
)

func TestNewIsWhatIPNetnsMakes(t *testing.T) {
	Need(t, Tool("ip"))
	ns, err := newNS(pidName("rscnstip", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = remove(ns.Name()) })
	if ns.Path() != filepath.Join(netns.Dir, ns.Name()) {
		t.Errorf("path %s", ns.Path())
	}
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil || !strings.Contains(string(out), ns.Name()) {
		t.Errorf("ip netns list: %v: %s", err, out)
	}
	if _, err := newNS(ns.Name()); !errors.Is(err, errExists) {
		t.Errorf("a second one: %v", err)
	}
	if err := exec.Command("ip", "netns", "delete", ns.Name()).Run(); err != nil {
		t.Errorf("ip netns delete: %v", err)
	}
	if _, err := netns.Open(ns.Name()); !errors.Is(err, netns.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestCommandsStartInsideAndSeeTheSameSys(t *testing.T) {
	ns := Namespace(t)
	var want string
	if err := ns.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
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

func TestLeftoversOfDeadProcessesOnly(t *testing.T) {
	Need(t)
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	const prefix = "rscnstleft"
	dead := pidName(prefix, cmd.Process.Pid)
	living := pidName(prefix, os.Getpid())
	for _, name := range []string{dead, living} {
		ns, err := newNS(name)
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		t.Cleanup(func() { _ = remove(name) })
	}
	got, err := leftovers(prefix)
	if err != nil || !slices.Equal(got, []string{dead}) {
		t.Errorf("leftovers %v, %v", got, err)
	}
	if got, err := sweep(prefix); err != nil || !slices.Equal(got, []string{dead}) {
		t.Errorf("swept %v, %v", got, err)
	}
	names, err := netns.List()
	if err != nil || !slices.Contains(names, living) || slices.Contains(names, dead) {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestANameThatIsNoFileNameIsRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b"} {
		if _, err := newNS(name); !errors.Is(err, errBadName) {
			t.Errorf("make %q: %v", name, err)
		}
		if err := remove(name); !errors.Is(err, errBadName) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
}
