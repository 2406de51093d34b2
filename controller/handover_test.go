package controller

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/test/netnstest"
)

// unixPair are the two ends of a connection.
func unixPair(t *testing.T) (ends [2]*net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends
}

// A service manager that does not answer holds the process before for a while. Its heir must not say that it is in use before that one is gone.
func TestAnHeirWaitsForTheEndOfAProcessThatWaitsForItsServiceManager(t *testing.T) {
	ends := unixPair(t)
	var gone atomic.Bool
	go func() {
		time.Sleep(fdstore.MainWithin)
		gone.Store(true)
		ends[0].Close()
	}()
	awaitEnd(ends[1])
	if !gone.Load() {
		t.Error("it did not wait")
	}
}

// When nothing of what was packed may be used, because an heir that was killed does not end, the VMs are attached anew: what outlives this
// process has nothing of them any more, or it would be in their way for ever.
func TestWhatAnHeirThatDoesNotEndHasIsMadeAnew(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF)
	store, n, dir := newTestStore(t), netnstest.Pair(t, netnstest.Options{NoIPv6: true}), t.TempDir()
	follow := store.follow(t)
	n.B.Do(t, func() error {
		c, err := New(Options{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"), BPFFS: filepath.Join(dir, "bpf"),
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Store: store.Store})
		if err != nil {
			return err
		}
		c.restored = true
		socket := filepath.Join(dir, "a")
		if _, err := c.Attach(api.AttachRequest{Iface: n.B.Dev, VM: "a", MAC: "52:54:00:00:00:01", VhostUser: socket}); err != nil {
			return err
		}
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		defer conn.Close()
		c.mu.Lock()
		p, left, _, err := c.pack()
		if err != nil {
			return err
		}
		c.release(left)
		c.takeBack(p, errors.New("it does not end"))
		p.Close() // as if it had ended meanwhile
		follow()
		for _, name := range slices.Sorted(maps.Keys(store.kept)) {
			if strings.HasPrefix(name, "u") || strings.HasPrefix(name, "v") || name == stateName(1) || name == stateName(2) {
				t.Errorf("the store still has %s", name)
			}
		}
		if store.kept[stateName(3)] == 0 || store.kept["lock"] == 0 {
			t.Errorf("it has %q alone", slices.Sorted(maps.Keys(store.kept)))
		}
		follow = store.follow(t)
		c.wakeWaiting()
		if u := c.uplinks[n.B.Dev]; u == nil || u.vms["a"] == nil {
			t.Errorf("the VM waits: %+v", c.waitingList(""))
		}
		c.mu.Unlock()
		err = c.shutdown()
		follow()
		return err
	})
}

// Who cannot take over is told why, and what to do instead, before anything is done for it.
func TestWhoMayNotTakeOverIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *api.ReplaceRequest)
		want   string // in the error; "": there is none
	}{
		"the same":                    {func(*api.ReplaceRequest) {}, ""},
		"an older version":            {func(r *api.ReplaceRequest) { r.Parcel = parcel.Version - 1 }, "for a downgrade stop this one and start the other"},
		"another state":               {func(r *api.ReplaceRequest) { r.State = "/elsewhere" }, "--state /s --bpffs /b"},
		"other pins":                  {func(r *api.ReplaceRequest) { r.BPFFS = "/elsewhere" }, "--state /s --bpffs /b"},
		"a shell":                     {func(r *api.ReplaceRequest) { r.Service = false }, "'systemctl reload rscctl'"},
		"another network namespace":   {func(r *api.ReplaceRequest) { r.NetNS = "net:[1]" }, "nsenter --net="},
		"a version that says no more": {func(r *api.ReplaceRequest) { r.NetNS = "" }, ""},
	} {
		ctl := &Controller{opt: Options{State: "/s", BPFFS: "/b", Version: "1", Service: true}}
		req := api.ReplaceRequest{Version: "2", Parcel: parcel.Version, State: "/s", BPFFS: "/b", Service: true, NetNS: ownNetNS()}
		c.change(&req)
		err := ctl.checkReplace(req, os.Getpid())
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
