package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	netnstest "github.com/rscctl/rscctl/test/netns"
)

// kernelTap is a tap in a namespace of its own. What is written goes through the kernel's GRO (IFF_NAPI) and is read back by
// a packet socket; what the packet socket sends goes through the kernel's segmentation and is read from the tap.
type kernelTap struct {
	t    *testing.T
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
	k := &kernelTap{t: t, tap: -1, sock: -1, buf: make([]byte, 1<<17)}
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

// linux is the running kernel's version as major*1000 + minor.
func linux(t *testing.T) int {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel version: %v", err)
	}
	return major*1000 + minor
}

// kernelDiffers tells why a case has another result with a kernel of this version, or nothing (coalescing rules, 3 and 5).
func kernelDiffers(name string, v6 bool, version int) string {
	switch {
	case name == "capacity":
		return "the kernel's table is smaller, and where the flows fall is random"
	case name == "pppoe_sid":
		return "PPPoE is not ours"
	case strings.Contains(name, "padded"):
		return "a padded packet does not merge in the kernel"
	case name == "ip_v6ext_same":
		return "the kernel merges equal extension headers"
	case name == "flags_cwr" && version <= 6014:
		return "up to 6.14 a packet behind CWR may join it"
	case name == "flags_cwr" && version >= 7000:
		return "from 7.0 on equal CWR merges"
	case name == "ip_id_df0_fixed" && version >= 6018:
		return "from 6.18 on a fixed ID merges without DF"
	case name == "ip_ttl" && v6 && version < 6010:
		return "before 6.10 the hop limit may differ"
	}
	return ""
}

// kernelTrains are more trains of which the rules say "as Linux": what must merge, and what must not by one field.
func kernelTrains() []selfCase {
	var list []selfCase
	add := func(name string, family int, in func(pt.TCP) []any) {
		list = append(list, selfCase{name: name, family: family, in: func(b pt.TCP) []any { b.Len = 100; return in(b) }})
	}
	add("a train", 0, steady)
	add("PSH in mid-train", 0, one(flags(pt.ACK|pt.PSH)))
	add("FIN in mid-train", 0, one(flags(pt.ACK|pt.FIN)))
	add("PSH first", 0, func(b pt.TCP) []any { t := b.Train(3); t[0].Flags = pt.ACK | pt.PSH; return packets(t...) })
	add("ECE on all", 0, always(flags(pt.ACK|pt.ECE)))
	add("ECE in mid-train", 0, since(flags(pt.ACK|pt.ECE)))
	add("ECT on all", 0, always(func(p *pt.TCP) { p.TOS = 2 }))
	add("CE mark", 0, since(func(p *pt.TCP) { p.TOS = 3 }))
	add("DSCP", 0, since(func(p *pt.TCP) { p.TOS = 0xb8 }))
	add("window", 0, since(func(p *pt.TCP) { p.Win = 9 }))
	add("ACK advance", 0, since(func(p *pt.TCP) { p.Ack += 9 }))
	add("older ACK", 0, since(func(p *pt.TCP) { p.Ack-- }))
	add("gap", 0, since(func(p *pt.TCP) { p.Seq++ }))
	add("overlap", 0, since(func(p *pt.TCP) { p.Seq-- }))
	add("short in mid-train", 0, lens(100, 100, 50, 100))
	add("larger in mid-train", 0, lens(100, 100, 101, 101))
	add("sequence wrap", 0, func(b pt.TCP) []any { b.Seq = 0xffffff00; return steady(b) })
	add("duplicate ACK between", 0, between(func(p *pt.TCP) {}))
	add("window update between", 0, between(func(p *pt.TCP) { p.Win = 9 }))
	add("timestamps on all", 0, always(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) }))
	add("timestamps appear", 0, since(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) }))
	add("SACK on all", 0, always(func(p *pt.TCP) { p.Opts = pt.SACK(1, 2) }))
	add("40 bytes of options", 0, always(func(p *pt.TCP) { p.Opts = make([]byte, 40) }))
	add("DF changes", 4, since(func(p *pt.TCP) { p.NoDF = true }))
	add("no DF on all", 4, always(func(p *pt.TCP) { p.NoDF = true }))
	add("ID wraps", 4, func(b pt.TCP) []any { b.ID = 0xfffe; return steady(b) })
	add("ID jumps", 4, since(func(p *pt.TCP) { p.ID += 5 }))
	add("TTL", 4, since(func(p *pt.TCP) { p.TTL = 9 }))
	add("segments of 1448", 0, func(b pt.TCP) []any { b.Opts = pt.Timestamps(1, 2); return lens(1448, 1448, 1448, 1448, 700)(b) })
	return list
}

// TestKernelGROMergesTheSame sends the cases of the self-test, and more, through the kernel's GRO: what comes out is what
// the table makes of them, byte for byte, in whatever order. (The kernel delivers a packet that it cannot merge before what
// it holds of the flow; the table does not.)
func TestKernelGROMergesTheSame(t *testing.T) {
	k := openKernelTap(t)
	version := linux(t)
	for _, c := range append(selfCases(), kernelTrains()...) {
		for _, v6 := range []bool{false, true} {
			if c.family == 4 && v6 || c.family == 6 && !v6 || c.set != nil {
				continue
			}
			t.Run(fmt.Sprintf("%s ipv6=%v", c.name, v6), func(t *testing.T) {
				if why := kernelDiffers(c.name, v6, version); why != "" {
					t.Logf("not compared: %s", why)
					return
				}
				k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
				b := pt.TCP{V6: v6, Seq: 100, Ack: 100, TTL: 8}
				cfg := negotiated(flowtable.GRO)
				cfg.Hold = selfHold
				r := newRunner(t, flowtable.Config{}, cfg)
				steps := c.in(b)
				r.do(steps)
				r.close()
				var want []string
				for i := range r.out {
					want = append(want, describe(int(r.out[i].GSOSize), r.out[i].frame))
				}
				var got []string
				for _, train := range trains(steps) {
					for _, f := range k.merge(train) {
						got = append(got, describe(int(binary.NativeEndian.Uint16(f[4:])), f[vnetLen:]))
					}
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("the kernel has\n%s\nthe table has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
		}
	}
}

// trains are the frames of a scenario, cut where time passes.
func trains(steps []any) [][][]byte {
	all := [][][]byte{nil}
	for _, s := range steps {
		switch s := s.(type) {
		case pt.TCP:
			all[len(all)-1] = append(all[len(all)-1], s.Frame())
		case wait:
			all = append(all, nil)
		}
	}
	return all
}

// describe writes a frame so that differences can be read.
func describe(gsoSize int, f []byte) string {
	end := len(f)
	if p, err := pt.Read(f); err == nil {
		end -= len(p.Trailer)
		return fmt.Sprintf("seq %d, %d bytes, gso_size %d: %x %x", p.Seq, len(p.Payload), gsoSize, f[:end-len(p.Payload)], pt.Sum(p.Payload))
	}
	return fmt.Sprintf("other, gso_size %d: %x", gsoSize, f[:end])
}

// TestKernelSegmentsSuperframes is the other direction: superframes sent through a device without TSO come out of the
// kernel's segmentation as the packets that went into the table.
func TestKernelSegmentsSuperframes(t *testing.T) {
	k := openKernelTap(t)
	for _, c := range []struct {
		name string
		in   func(b pt.TCP) []any
	}{
		{"train", steady},
		{"timestamps", always(func(p *pt.TCP) { p.Opts = pt.Timestamps(1, 2) })},
		{"short last", lens(1448, 1448, 1448, 7)},
		{"odd sizes", lens(101, 101, 101, 99)},
		{"PSH", func(b pt.TCP) []any { t := b.Train(4); t[3].Flags = pt.ACK | pt.PSH; return packets(t...) }},
		{"FIN", func(b pt.TCP) []any { t := b.Train(4); t[3].Flags = pt.ACK | pt.FIN | pt.PSH; return packets(t...) }},
		{"ECE and ECT", always(func(p *pt.TCP) { p.Flags, p.TOS = pt.ACK|pt.ECE, 2 })},
		{"ID and sequence wrap", func(b pt.TCP) []any { b.ID, b.Seq = 0xfffe, 0xffffff00; return steady(b) }},
		{"64 KiB", func(b pt.TCP) []any {
			var n []int
			for range 45 {
				n = append(n, 1448)
			}
			return lens(n...)(b)
		}},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s ipv6=%v", c.name, v6), func(t *testing.T) {
				k := &kernelTap{t: t, tap: k.tap, sock: k.sock, buf: k.buf}
				cfg := negotiated(flowtable.GRO)
				cfg.Hold = time.Second
				r := newRunner(t, flowtable.Config{}, cfg)
				r.do(c.in(pt.TCP{V6: v6, Seq: 100, Ack: 100, ID: 7, Len: 100}))
				r.close()
				if len(r.out) != 1 || r.out[0].GSOType == 0 {
					t.Fatalf("not one superframe: %s", r.result())
				}
				k.send(&r.out[0])
				got := k.read(k.tap, len(r.in))
				for i := range got {
					if f := got[i][vnetLen:]; !bytes.Equal(f, r.in[i].frame) {
						t.Errorf("packet %d: the kernel wrote\n%x\nit was\n%x", i, f[:min(len(f), 100)], r.in[i].frame[:min(len(f), 100)])
					}
				}
			})
		}
	}
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
