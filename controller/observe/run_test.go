package observe

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// Who may not count is told what it takes, and not what the verifier thought of it.
func TestWithoutCapabilitiesTheRemedyIsNamed(t *testing.T) {
	netnstest.Need(t)
	runtime.LockOSThread() // capabilities are a thread's
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			t.Fatal(err)
		}
	}()
	for _, missing := range [][]int{{unix.CAP_NET_ADMIN}, {unix.CAP_SYS_ADMIN, unix.CAP_BPF}, {unix.CAP_SYS_ADMIN, unix.CAP_PERFMON}} {
		less := all
		for _, c := range missing {
			less[c/32].Effective &^= 1 << (c % 32)
		}
		if err := unix.Capset(&header, &less[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(context.Background(), Options{Interfaces: []string{"lo"}, Duration: time.Millisecond}); !errors.Is(err, ErrPermission) {
			t.Errorf("without %v: %v", missing, err)
		}
	}
}

func TestWhatIsNoInterfaceIsNamed(t *testing.T) {
	netnstest.NeedLiveKernel(t)
	_, err := Run(context.Background(), Options{Interfaces: []string{"lo", "nosuch0"}, Duration: time.Millisecond})
	if !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("got %v", err)
	}
}

// One run of a network namespace at a time may take filters for those of a killed one.
func TestStaleFiltersAreTakenWhileNobodyCounts(t *testing.T) {
	ns := netnstest.Namespace(t)
	err := ns.Do(func() error {
		first, err := takeLock()
		if err != nil {
			return err
		}
		if second, err := takeLock(); err != nil || second.held() {
			t.Errorf("a second one has it: %v", err)
		}
		if err := RemoveStale(); !errors.Is(err, ErrBusy) {
			t.Errorf("beside another run: %v", err)
		}
		first.release()
		return RemoveStale()
	})
	if err != nil {
		t.Error(err)
	}
}
