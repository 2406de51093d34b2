package flowtable_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
)

// kernelTap is a tap in a namespace of its own. What is written goes through the kernel's GRO (IFF_NAPI) and is read back by
// a packet socket; what the packet socket sends goes through the kernel's segmentation and is read from the tap.
type kernelTap struct {
	t    *testing.T
	ns   *netnstest.NS
	tap  int
	sock int
	buf  []byte
}

const (
	tapName    = "gro0"
	vnetLen    = 10                    // virtio_net_hdr without num_buffers
	flushAfter = 20 * time.Millisecond // gro_flush_timeout: longer than any train takes
)

func openKernelTap(t *testing.T) *kernelTap {
	t.Helper()
	netnstest.Need(t, netnstest.TAP, netnstest.Packets)
	ns := netnstest.Namespace(t)
	k := &kernelTap{t: t, ns: ns, tap: -1, sock: -1, buf: make([]byte, 1<<17)}
	t.Cleanup(func() { // before the namespace goes
		for _, fd := range []int{k.tap, k.sock} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
	if err := ns.Do(k.open); err != nil {
		t.Fatal(err)
	}
	return k
}

// open runs in the namespace.
func (k *kernelTap) open() error {
	// No IPv6 on it: the kernel would speak.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	k.tap = fd
	req, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_NAPI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := k.keepHeads(); err != nil {
		return err
	}
	ctl, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ctl)
	req.SetUint16(unix.IFF_UP | unix.IFF_NOARP)
	if err := unix.IoctlIfreq(ctl, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	if err := unix.IoctlIfreq(ctl, unix.SIOCGIFINDEX, req); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return k.listen(int(req.Uint32()))
}

// keepHeads has GRO wait between polls. The settings are in the sysfs of the namespace only, so one is mounted.
func (k *kernelTap) keepHeads() error {
	dir := k.t.TempDir()
	if err := unix.Mount("sysfs", dir, "sysfs", 0, ""); err != nil {
		return fmt.Errorf("sysfs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for name, value := range map[string]string{
		"gro_flush_timeout": fmt.Sprint(int64(flushAfter)), "napi_defer_hard_irqs": "20",
	} {
		if err := os.WriteFile(filepath.Join(dir, "class/net", tapName, name), []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernelTap) listen(index int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	k.sock = fd
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("PACKET_VNET_HDR: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("PACKET_IGNORE_OUTGOING: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: index})
}

// patience is how long a frame may take that has to come.
const patience = 5 * time.Second

// read returns what comes from fd, virtio_net_hdr and frame, until it stands for n packets on a wire. By the number and not
// by silence: nobody knows how long a busy machine is silent.
func (k *kernelTap) read(fd, n int) [][]byte {
	k.t.Helper()
	var all [][]byte
	for deadline := time.Now().Add(patience); n > 0; {
		m, err := unix.Read(fd, k.buf)
		switch {
		case err == nil:
			f := append([]byte(nil), k.buf[:m]...)
			all = append(all, f)
			n -= wirePackets(f)
			continue
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			k.t.Fatalf("read: %v", err)
		case time.Now().After(deadline):
			k.t.Fatalf("%d packets did not come within %v", n, patience)
		}
		ts := unix.NsecToTimespec(int64(patience))
		if _, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
			k.t.Fatalf("poll: %v", err)
		}
	}
	return all
}

// wirePackets is how many packets a frame behind its virtio_net_hdr stands for.
func wirePackets(f []byte) int {
	size := int(binary.NativeEndian.Uint16(f[4:]))
	if f[1] == udpL4 {
		payload := len(f) - vnetLen - int(binary.NativeEndian.Uint16(f[6:])) - 8
		return (payload + size - 1) / size
	}
	p, err := pt.Read(f[vnetLen:])
	if f[1] == 0 || size == 0 || err != nil {
		return 1
	}
	return (len(p.Payload) + size - 1) / size
}

// tick is the time of the last tick of the kernel's clock (jiffies move with it).
func tick() unix.Timespec {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		panic(err)
	}
	return ts
}

// merge writes a train, one write per frame, and reads what GRO made of it. A head older than a jiffy is flushed at the end
// of every poll, so a train begins right behind a tick, and one that meets the next is repeated.
func (k *kernelTap) merge(frames [][]byte) [][]byte {
	k.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	write := make([][]byte, len(frames))
	for i := range frames {
		write[i] = append(make([]byte, vnetLen), frames[i]...)
	}
	for range 100 {
		for start := tick(); tick() == start; {
		}
		begin := tick()
		for _, w := range write {
			if _, err := unix.Write(k.tap, w); err != nil {
				k.t.Fatalf("write: %v", err)
			}
		}
		within := tick() == begin
		got := k.read(k.sock, len(frames))
		if within {
			return got
		}
	}
	k.t.Skip("this machine is too slow or too busy: no train was written within one tick")
	return nil
}

// send hands a superframe to the kernel as a virtio device would to its driver.
func (k *kernelTap) send(o *output) {
	k.t.Helper()
	b := make([]byte, vnetLen, vnetLen+len(o.frame))
	b[0], b[1] = o.Flags, o.GSOType
	for i, v := range []uint16{o.HdrLen, o.GSOSize, o.CsumStart, o.CsumOffset} {
		binary.NativeEndian.PutUint16(b[2+2*i:], v)
	}
	if _, err := unix.Write(k.sock, append(b, o.frame...)); err != nil {
		k.t.Fatalf("send: %v", err)
	}
}
