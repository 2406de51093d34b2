package tap

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

func TestAMissingDeviceIsNamedWithTheRemedy(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none"), "/dev/null"} {
		if _, err := openDevice(path); !errors.Is(err, ErrNoVhostNet) {
			t.Errorf("%s: %v, want ErrNoVhostNet", path, err)
		}
	}
}

// A file system without devices refuses root too, as a container's device rules do.
func TestADeviceThatMayNotBeOpenedIsNamed(t *testing.T) {
	netnstest.Need(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "vhost-net")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 238))); err != nil {
		t.Fatal(err)
	}
	if _, err := openDevice(path); !errors.Is(err, ErrPermission) {
		t.Errorf("%v, want ErrPermission", err)
	}
}

// A ring that the kernel gave up is noticed: here by a head beyond its descriptors.
func TestARingThatTheKernelGaveUpIsBroken(t *testing.T) {
	netnstest.Need(t, netnstest.Vhost)
	p, err := OpenPacket(1) // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	n, err := OpenNet(NetConfig{Backend: p, RingSize: 4})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Err(); err != nil {
		t.Fatal(err)
	}
	if err := n.Post(&virtio.Frame{Frags: [][]byte{make([]byte, 60)}, Len: 60}, []uint64{7}); err != nil {
		t.Fatal(err)
	}
	avail, _ := vring.Offsets(4)
	binary.LittleEndian.PutUint16(n.mem.mem[avail+4:], 99)
	if err := n.Kick(); err != nil {
		t.Fatal(err)
	}
	fd := []unix.PollFd{{Fd: int32(n.ErrFD()), Events: unix.POLLIN}}
	if k, err := unix.Poll(fd, 10000); k != 1 || err != nil {
		t.Errorf("ErrFD: %d, %v", k, err)
	}
	if err := n.Err(); !errors.Is(err, ErrRing) {
		t.Errorf("%v, want ErrRing", err)
	}
	var back []uint64
	start := time.Now()
	if err := n.Close(func(ref uint64) { back = append(back, ref) }); err != nil {
		t.Errorf("close after %s: %v", time.Since(start), err)
	}
	if len(back) != 1 || back[0] != 7 {
		t.Errorf("refs %v came back, want 7", back)
	}
}
