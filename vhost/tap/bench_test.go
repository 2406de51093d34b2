package tap_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// The cost of a superframe of 45 segments of 1448 bytes in 46 chunks of a UMEM, in bursts of 16, down to a tap that is full: the
// copy is made and the frame dropped. cpu-ns/frame is the feeding thread's, worker-ns/frame that of vhost's thread.
func BenchmarkFeed(b *testing.B) {
	const burst = 16
	s := stream{segments: 45, size: 1448}
	b.Run("packet", func(b *testing.B) {
		r := newRig(b, tapvm.AllOffloads)
		umem := make([]byte, burst*46*chunkSize)
		var frames []*virtio.Frame
		for i := range burst {
			frames = append(frames, s.frame(umem[i*46*chunkSize:]))
		}
		var asleep time.Duration
		measure(b, &asleep, func(n int) {
			r.send(frames[:n]...)
		})
	})
	b.Run("net", func(b *testing.B) {
		n := newNetRig(b, tapvm.AllOffloads, burst*46, tap.NetConfig{})
		var frames []*virtio.Frame
		var refs [][]uint64
		for range burst {
			f, r, _ := n.build(s)
			frames, refs = append(frames, f), append(refs, r)
		}
		defer func() {
			for _, r := range refs {
				n.spare = append(n.spare, r...)
			}
		}()
		back := 0
		free := func(uint64) { back++ } // the chunks stay as they are, so that they can be posted over and over
		fd := []unix.PollFd{{Fd: int32(n.net.CallFD()), Events: unix.POLLIN}}
		var asleep time.Duration
		reap := func(room int) {
			n.net.Reap(free)
			for n.net.Room() < room {
				if !n.net.ArmCall() {
					start := threadTime(b)
					_, _ = unix.Poll(fd, 1000)
					asleep += threadTime(b) - start
					n.net.AckCall()
				}
				n.net.Reap(free)
			}
		}
		worker := workerTime(b)
		measure(b, &asleep, func(k int) {
			reap(k)
			for i := range k {
				if err := n.net.Post(frames[i], refs[i]); err != nil {
					b.Fatal(err)
				}
			}
			n.kick()
		})
		reap(tap.DefaultRingSize)
		b.ReportMetric(float64(workerTime(b)-worker)/float64(b.N), "worker-ns/frame")
	})
}

// measure calls feed until it has had b.N frames, at most 16 at once. What feed adds to asleep is not counted: in a VM whose host is
// busy, a sleeper that wakes late seems to have worked.
func measure(b *testing.B, asleep *time.Duration, feed func(n int)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	b.ResetTimer()
	start := threadTime(b)
	*asleep = 0
	for left := b.N; left > 0; left -= 16 {
		feed(min(16, left))
	}
	b.ReportMetric(float64(threadTime(b)-start-*asleep)/float64(b.N), "cpu-ns/frame")
	b.StopTimer()
}

func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// workerTime is the CPU time of this process's vhost threads: kernel threads before Linux 6.4, then threads of ours. Each is named
// after the thread that owned its device.
func workerTime(b *testing.B) (sum time.Duration) {
	for _, glob := range []string{"/proc/[0-9]*/comm", "/proc/self/task/*/comm"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range files {
			comm, _ := os.ReadFile(f) // it may have ended
			owner, ok := strings.CutPrefix(strings.TrimSpace(string(comm)), "vhost-")
			if _, err := os.Stat("/proc/self/task/" + owner); !ok || err != nil {
				continue
			}
			stat, err := os.ReadFile(filepath.Join(filepath.Dir(f), "schedstat"))
			if err != nil {
				b.Fatal(err)
			}
			var ns int64
			if _, err := fmt.Sscan(string(stat), &ns); err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum
}
