package bpf

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netns"
	"github.com/rscctl/rscctl/test/netnstest"
)

// The counting program is run on frames by BPF_PROG_TEST_RUN, where they seem to be those of the loopback.

const testIndex = 1

func loadObserverForTest(t *testing.T) *Observer {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	o, err := LoadObserver(2)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := o.counts.Put(uint32(testIndex), make([]Observed, ebpf.MustPossibleCPU())); err != nil {
		t.Fatal(err)
	}
	return o
}

// see gives the program one frame, and checks that it leaves it alone.
func (o *Observer) see(t *testing.T, frame []byte, gsoSize uint32) {
	t.Helper()
	leavesAlone(t, o.prog, frame, gsoSize)
}

func (o *Observer) counted(t *testing.T) Observed {
	t.Helper()
	c, err := o.Counts(testIndex)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// segment is a data segment of one flow.
func segment(seq uint32, flags byte, payload int) []byte {
	s := tcp(8, flags, payload)
	binary.BigEndian.PutUint32(s[4:], seq)
	return ip4(6, 0x4000, nil, s)
}

func TestObserverCountsFramesBySegments(t *testing.T) {
	for _, c := range []struct {
		segments, bin int
	}{{1, 0}, {2, 1}, {9, 1}, {10, 2}, {21, 2}, {22, 3}, {44, 3}, {45, 4}} {
		// BPF_PROG_TEST_RUN takes a page at most, so the segments of large frames are small ones.
		size := map[bool]int{true: 1400, false: 60}[c.segments == 1]
		for v, frame := range [][]byte{ip4(6, 0x4000, nil, tcp(8, 0x10, size*c.segments)), ip6(6, tcp(8, 0x10, size*c.segments))} {
			o := loadObserverForTest(t)
			o.see(t, frame, uint32(size))
			got := o.counted(t)
			n, payload := uint64(c.segments), uint64(size*c.segments)
			want := Observed{}
			want.TCP[v] = ObservedTCP{Frames: 1, Bytes: uint64(len(frame)), DataFrames: 1, PayloadBytes: payload, Segments: n, BulkTrains: 1}
			want.TCP[v].BulkFrames[c.bin], want.TCP[v].BulkSegments[c.bin], want.TCP[v].BulkBytes[c.bin] = 1, n, payload
			if got != want {
				t.Errorf("%d segments, family %d:\n%+v, want\n%+v", c.segments, v, got, want)
			}
		}
	}
}

func TestObserverKnowsWhatIsNoBulk(t *testing.T) {
	ack := padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 0)))
	udp := ip4(17, 0, nil, make([]byte, 1400))
	arp := padded(60, ether(0x0806, make([]byte, 28)))
	later := ip4(6, 0x00b9, nil, make([]byte, 1400)) // a fragment without ports
	small := ip4(6, 0x4000, nil, tcp(8, 0x18, 999))
	for _, c := range []struct {
		name  string
		frame []byte
		want  Observed
	}{
		{"ack", ack, Observed{TCP: [2]ObservedTCP{{Frames: 1, Bytes: 60}}}},
		{"udp", udp, Observed{OtherFrames: 1, OtherBytes: uint64(len(udp))}},
		{"arp", arp, Observed{OtherFrames: 1, OtherBytes: 60}},
		{"fragment", later, Observed{OtherFrames: 1, OtherBytes: uint64(len(later))}},
		{"small", small, Observed{TCP: [2]ObservedTCP{{Frames: 1, Bytes: uint64(len(small)), DataFrames: 1, PayloadBytes: 999, Segments: 1}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := loadObserverForTest(t)
			o.see(t, c.frame, 0)
			if got := o.counted(t); got != c.want {
				t.Errorf("%+v, want\n%+v", got, c.want)
			}
		})
	}
}

// A train is what rscctl would make one frame of.
func TestObserverFindsTrains(t *testing.T) {
	other := segment(2400, 0x10, 1200)
	binary.BigEndian.PutUint16(other[14+20:], 40001) // from another port
	for _, c := range []struct {
		name   string
		frames [][]byte
		trains uint64
	}{
		{"in order", [][]byte{segment(0, 0x10, 1200), segment(1200, 0x10, 1200), segment(2400, 0x18, 1200)}, 1},
		{"across the end of the sequence numbers", [][]byte{segment(0xffffff00, 0x10, 1200), segment(0xffffff00+1200-1<<32, 0x10, 1200)}, 1},
		{"a gap", [][]byte{segment(0, 0x10, 1200), segment(2400, 0x10, 1200)}, 2},
		{"the same again", [][]byte{segment(0, 0x10, 1200), segment(0, 0x10, 1200)}, 2},
		{"after a PSH", [][]byte{segment(0, 0x18, 1200), segment(1200, 0x10, 1200)}, 2},
		{"after a shorter one", [][]byte{segment(0, 0x10, 1200), segment(1200, 0x10, 1100), segment(2300, 0x10, 1200)}, 2},
		{"a longer one", [][]byte{segment(0, 0x10, 1100), segment(1100, 0x10, 1200)}, 2},
		{"two flows in turn", [][]byte{segment(0, 0x10, 1200), other, segment(1200, 0x10, 1200)}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A train is at most 50 us long, and this test may be stopped for longer between two frames: then it is tried again.
			var got Observed
			for range 100 {
				o := loadObserverForTest(t)
				runInARow(t, o.prog, c.frames)
				if got = o.counted(t); got.TCP[0].BulkTrains == c.trains {
					return
				}
			}
			t.Errorf("%d trains, want %d", got.TCP[0].BulkTrains, c.trains)
		})
	}
}

// As many frames as fit into 65,535 bytes are a train.
func TestObserverEndsATrainThatIsFull(t *testing.T) {
	v := openVMTap(t)
	o := v.observe(t, ModeClsact, Ingress)
	for n := range uint32(2) {
		v.write(t, segment(n*45*1400, 0x10, 45*1400), 1, 14+20+32, 1400)
	}
	if c, err := o.Counts(v.index); err != nil || c.TCP[0].BulkTrains != 2 {
		t.Errorf("%d trains of 126,000 bytes, want 2 (%v)", c.TCP[0].BulkTrains, err)
	}
}

func TestObserverDoesNotCountWhatNobodyAskedFor(t *testing.T) {
	o := loadObserverForTest(t)
	if err := o.counts.Delete(uint32(testIndex)); err != nil {
		t.Fatal(err)
	}
	o.see(t, segment(0, 0x10, 1200), 0)
	if c, err := o.Counts(testIndex); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("%+v, %v", c, err)
	}
}

// observe hangs an observer on the tap in one of the two ways, or skips where the kernel lacks it.
func (v *vmTap) observe(t *testing.T, mode string, side Side) *Observer {
	t.Helper()
	o, err := LoadObserver(1)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { o.Close() })
	got := ""
	v.do(t, func() (err error) {
		if mode == ModeClsact {
			got, err = o.attachBy(side.hook().attachFilter, v.index)
		} else {
			got, err = o.Attach(v.index, side, false)
		}
		return err
	})
	if got != mode {
		netnstest.Skip(t, "TCX (Linux 6.6)")
	}
	return o
}

// emit has the host transmit a frame on the tap.
func (v *vmTap) emit(t *testing.T, frame []byte) {
	t.Helper()
	v.do(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: v.index})
	})
}

func TestObserverCountsItsSideLive(t *testing.T) {
	for _, mode := range tapModes {
		for _, side := range []Side{Egress, Ingress} {
			t.Run(mode+map[Side]string{Egress: " egress", Ingress: " ingress"}[side], func(t *testing.T) {
				v := openVMTap(t)
				o := v.observe(t, mode, side)
				out, in := segment(0, 0x10, 1200), segment(0, 0x10, 20*1400)
				count := func() uint64 {
					c, err := o.Counts(v.index)
					if err != nil {
						t.Fatal(err)
					}
					return c.TCP[0].Segments
				}
				both := func() {
					v.emit(t, out)
					v.write(t, in, 1, 14+20+32, 1400)
				}
				both()
				want := map[Side]uint64{Egress: 1, Ingress: 20}[side]
				if n := count(); n != want {
					t.Errorf("%d segments, want %d", n, want)
				}
				for range 2 {
					if err := o.Detach(); err != nil {
						t.Fatal(err)
					}
				}
				v.wantBoth(t, "after Detach", false)
				both()
				if n := count(); n != want {
					t.Errorf("%d segments after Detach, want %d", n, want)
				}
			})
		}
	}
}

// wantBoth is want for both sides of clsact.
func (v *vmTap) wantBoth(t *testing.T, when string, qdisc bool, names ...string) {
	t.Helper()
	_, there := v.filters(t)
	var got []string
	v.do(t, func() error {
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			list, err := netlink.FilterList(l, parent)
			if err != nil {
				return err
			}
			for _, f := range list {
				got = append(got, f.(*netlink.BpfFilter).Name)
			}
		}
		return nil
	})
	if !slices.Equal(got, names) || there != qdisc {
		t.Errorf("%s: filters %q, qdisc %t; want %q, %t", when, got, there, names, qdisc)
	}
}

// A tap that a controller counts on can be observed, and keeps the controller's filter.
func TestObserverBesideTheTapProgram(t *testing.T) {
	for _, mode := range tapModes {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			known := func() (yes bool) {
				v.do(t, func() error { yes = TapCounted(v.index); return nil })
				return yes
			}
			if known() {
				t.Error("a tap without a program is called attached")
			}
			p := v.load(t)
			v.attachAs(t, p, mode)
			o := v.observe(t, mode, Egress)
			if !known() {
				t.Error("the controller's program is not seen")
			}
			v.emit(t, segment(0, 0x10, 1200))
			v.write(t, padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 6))), 0, 0, 0)
			if c, err := o.Counts(v.index); err != nil || c.TCP[0].Frames != 1 {
				t.Errorf("%+v, %v", c, err)
			}
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			if rows := takeFlows(t, p); len(rows) != 1 {
				t.Errorf("the tap's program counted %+v", rows)
			}
			if mode == ModeClsact {
				v.wantBoth(t, "after the observer", true, TapProgramName+withQdisc)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			v.wantBoth(t, "after the controller", false)
		})
	}
}

func TestObserverOnNoInterface(t *testing.T) {
	v := openVMTap(t)
	o, err := LoadObserver(1)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	v.do(t, func() error {
		if err := deleteLink("tap0"); err != nil {
			return err
		}
		if _, err := o.Attach(v.index, Egress, false); !errors.Is(err, ErrNoDevice) {
			t.Errorf("got %v", err)
		}
		return RemoveStaleObserver(v.index)
	})
}

// tcxNames are the names of the TCX programs there, in the calling thread's namespace.
func tcxNames(t *testing.T, ifindex int, at ebpf.AttachType) (names []string) {
	t.Helper()
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Programs {
		names = append(names, NameOf(p.ID))
	}
	return names
}

// TestDiesObserving is run by the next test, in a process of its own.
func TestDiesObserving(t *testing.T) {
	path, mode := os.Getenv(staleEnv), os.Getenv(staleEnv+"_MODE")
	if path == "" {
		return
	}
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vmTap{ns: &netnstest.NS{NS: ns}}
	v.do(t, func() error {
		l, err := netlink.LinkByName("tap0")
		if err == nil {
			v.index = l.Attrs().Index
		}
		return err
	})
	v.observe(t, mode, Egress)
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestWhatAKilledObserverLeaves(t *testing.T) {
	for _, mode := range tapModes {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			v.observe(t, mode, Egress).Close() // or skip
			cmd := exec.Command(os.Args[0], "-test.run", "^TestDiesObserving$")
			cmd.Env = append(os.Environ(), staleEnv+"="+v.ns.Path(), staleEnv+"_MODE="+mode)
			out, _ := cmd.CombinedOutput()
			if ws := cmd.ProcessState; ws == nil || ws.ExitCode() != -1 {
				t.Fatalf("it was not killed: %s", out)
			}
			if mode == ModeTCX {
				v.wantBoth(t, "after the kill", false)
				v.do(t, func() error {
					if names := tcxNames(t, v.index, observeEgress.at); len(names) != 0 {
						t.Errorf("after the kill: programs %q", names)
					}
					return nil
				})
				return
			}
			v.wantBoth(t, "after the kill", true, ObserverProgramName+withQdisc)
			v.do(t, func() error { return errors.Join(RemoveStaleObserver(v.index), RemoveStaleObserver(v.index)) })
			v.wantBoth(t, "after RemoveStaleObserver", false)
		})
	}
}
