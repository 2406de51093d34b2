package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
)

// Environment variables that say what runs.
const (
	envVM   = "RSCCTL_VM"   // 1: boot VMs
	envLong = "RSCCTL_LONG" // 1: and run the tests that take minutes each
)

// Environment variables for a machine without Go: the product and the guest's initramfs, ready made.
const (
	envBinary = "RSCCTL_BINARY"
	envInitrd = "RSCCTL_VM_INITRD"
)

// bootWithin is generous: an emulated boot takes 3 s on an idle machine, and CI machines are not idle.
var bootWithin = patience(2 * time.Minute)

// envPatience multiplies all bounds, for very slow machines: an emulated machine that emulates another, say.
const envPatience = "RSCCTL_VM_PATIENCE"

func patience(d time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(envPatience)); err == nil && n > 1 {
		return d * time.Duration(n)
	}
	return d
}

// shared is what all tests of a run use, made by the first that needs it.
var shared struct {
	dir    string
	kernel func() (Kernel, string, error) // and the initramfs
	newer  func() (Kernel, string, error) // the kernel of setup.sh newer, and its initramfs
	rscctl func() (string, error)         // the product's binary
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rscctl-vm-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.dir = dir
	initrd, made := os.LookupEnv(envInitrd)
	if !made {
		initrd = filepath.Join(dir, "initrd")
	}
	shared.kernel = withInitrd(func() (Kernel, error) { return FindKernel(".") }, initrd, made)
	shared.newer = withInitrd(newerKernel, filepath.Join(dir, "newer-initrd"), false)
	shared.rscctl = sync.OnceValues(func() (string, error) {
		if binary, given := os.LookupEnv(envBinary); given {
			return binary, nil
		}
		out := filepath.Join(dir, "rscctl")
		return out, goBuild(context.Background(), out, "github.com/rscctl/rscctl/cmd/rscctl")
	})
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// withInitrd finds a kernel and makes the initramfs for it, unless that is made, when the first test asks.
func withInitrd(find func() (Kernel, error), initrd string, made bool) func() (Kernel, string, error) {
	build := sync.OnceValues(func() (Kernel, error) {
		k, err := find()
		if err != nil || made {
			return k, err
		}
		return k, BuildInitrd(context.Background(), k, initrd, Extras{})
	})
	return func() (Kernel, string, error) {
		k, err := build()
		return k, initrd, err
	}
}

// asked skips unless the run is one for these tests. That is the plan, not a lack: `make test` has a stage of its own.
func asked(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getenv(envVM) != "1" {
		t.Skip("allowed: boots a VM: set " + envVM + "=1")
	}
}

// needVM returns what a VM needs, or skips.
func needVM(t *testing.T) (Kernel, string) {
	t.Helper()
	asked(t)
	if _, err := exec.LookPath(QEMU); err != nil {
		netnstest.Skip(t, QEMU+" (run test/vm/setup.sh)")
	}
	k, initrd, err := shared.kernel()
	if errors.Is(err, ErrNoKernel) {
		netnstest.Skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return k, initrd
}

// needLong skips a test that takes minutes unless asked for. Leaving it out of a short run is the plan, not a lack.
func needLong(t *testing.T) {
	t.Helper()
	if os.Getenv(envLong) != "1" {
		t.Skip("allowed: takes minutes: set " + envLong + "=1 (make test-all does)")
	}
}

// start starts a VM that ends with the test, and shows what it said when the test has failed. Without a kernel it has the usual one.
func start(t *testing.T, o Options) *VM {
	t.Helper()
	if o.Kernel.Image == "" {
		o.Kernel, o.Initrd = needVM(t)
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	v, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(v.Report())
		}
		v.Kill()
	})
	return v
}

// boot starts a VM and waits until it takes orders.
func boot(t *testing.T, o Options) (*VM, control.Hello) {
	t.Helper()
	v := start(t, o)
	return v, ready(t, v)
}

func ready(t *testing.T, v *VM) control.Hello {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootWithin)
	defer cancel()
	hello, err := v.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return hello
}

// do gives an order that must succeed within the time.
func do(t *testing.T, v *VM, within time.Duration, op string, args, result any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(within))
	defer cancel()
	if err := v.Do(ctx, op, args, result); err != nil {
		t.Fatal(err)
	}
}
