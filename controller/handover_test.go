package controller

import (
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/fdstore"
)

// A service manager that does not answer holds the process before for a while. Its heir must not say that it is in use before that one is gone.
func TestAnHeirWaitsForTheEndOfAProcessThatWaitsForItsServiceManager(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ends[i] = c.(*net.UnixConn)
	}
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
