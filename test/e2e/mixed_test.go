package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// mixed is bulk and one connection of questions and answers, all to one guest and by one queue.
type mixed struct {
	r        *rig
	received atomic.Int64 // bytes of bulk
	ask      net.Conn
}

// usualSender dials with Linux' own congestion control, whatever the machine's: see the demo's senders.
var usualSender = net.Dialer{Timeout: 10 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
}}

// mix opens the connections. The bulk of all flows together is paced at so many bytes a second; 0: as fast as it goes.
func (r *rig) mix(g *guest, flows int, pace int64) *mixed {
	r.t.Helper()
	m := &mixed{r: r}
	addr := g.side.IPv4.Addr().String()
	bulk, echo := r.listenIn(g.side, addr), r.listenIn(g.side, addr)
	go serve(bulk, func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for {
			n, err := c.Read(buf)
			m.received.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	go serve(echo, func(c net.Conn) { _, _ = io.Copy(c, c) })
	dial := func(to net.Listener) (c net.Conn) {
		r.net.A.Do(r.t, func() (err error) {
			c, err = usualSender.Dial("tcp", to.Addr().String())
			return err
		})
		r.t.Cleanup(func() { c.Close() })
		return c
	}
	m.ask = dial(echo)
	for range flows {
		c := dial(bulk)
		if pace > 0 {
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err == nil {
				err = errors.Join(raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, int(pace/int64(flows)))
				}), err)
			}
			if err != nil {
				r.t.Fatal(err)
			}
		}
		go func() {
			buf := make([]byte, 256<<10)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		}()
	}
	return m
}

// listenIn listens in a side's namespace.
func (r *rig) listenIn(s *netnstest.Side, addr string) (l net.Listener) {
	r.t.Helper()
	s.Do(r.t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	})
	r.t.Cleanup(func() { l.Close() })
	return l
}

func serve(l net.Listener, conn func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			conn(c)
		}()
	}
}

// mixRun is what one span brought.
type mixRun struct {
	p50, p99 float64 // us from question to answer
	gbps     float64 // of bulk
	cpu      float64 // seconds of the worker per GB
	segments float64 // a superframe
	large    float64 // share of the bytes in frames above 32 KiB, 23 segments and more, at least
	hold     time.Duration
}

// run sets a policy and measures for a while.
func (m *mixed) run(span time.Duration, policy ...string) (out mixRun) {
	t := m.r.t
	t.Helper()
	m.r.must(append([]string{"policy", "set", "vm0"}, policy...)...)
	time.Sleep(span / 2)
	var a, b api.Stats
	m.r.json(&a, "stats")
	began, got := time.Now(), m.received.Load()
	var took []float64
	question := make([]byte, 100)
	for time.Since(began) < span {
		at := time.Now()
		if _, err := m.ask.Write(question); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(m.ask, question); err != nil {
			t.Fatal(err)
		}
		took = append(took, float64(time.Since(at).Nanoseconds())/1e3)
		time.Sleep(200 * time.Microsecond)
	}
	bytes := float64(m.received.Load() - got)
	out.gbps = bytes * 8 / time.Since(began).Seconds() / 1e9
	m.r.json(&b, "stats")
	slices.Sort(took)
	out.p50, out.p99 = took[len(took)/2], took[len(took)*99/100]
	va, vb := a.VMs[0], b.VMs[0]
	if n := vb.Superframes - va.Superframes; n > 0 {
		out.segments = float64(vb.MergedPackets-va.MergedPackets) / float64(n)
		small := uint64(0) // bytes, at most
		for i, h := range vb.FrameBytes {
			if h.Le <= 32768 {
				small += h.Le * (h.Count - va.FrameBytes[i].Count)
			}
		}
		out.large = max(0, 1-float64(small)/float64(vb.FrameBytesSum-va.FrameBytesSum))
	}
	var p api.PolicyResponse
	m.r.json(&p, "policy", "get", "vm0")
	out.hold = time.Duration(p.HoldNowNS)
	for i := range b.Queues {
		out.cpu += float64(b.Queues[i].CPUNS-a.Queues[i].CPUNS) / bytes
	}
	return out
}

// middle is the median of what f says of runs.
func middle(runs []mixRun, f func(*mixRun) float64) float64 {
	all := make([]float64, len(runs))
	for i := range runs {
		all[i] = f(&runs[i])
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Questions and answers beside bulk, with coalescing off and with the hold that VMs have when nobody says anything, in turn; and bulk
// with fixed holds beside them. It reports, as times are the machine's: RSCCTL_LONG=1 go test -v -run Mixed ./test/e2e. RSCCTL_PAIRS is
// how many pairs there are, 20 unless it says otherwise.
func TestMixedTrafficIsReported(t *testing.T) {
	needLong(t)
	pairs := 20
	if n, err := strconv.Atoi(os.Getenv("RSCCTL_PAIRS")); err == nil {
		pairs = n
	}
	const span = 400 * time.Millisecond
	for _, c := range []struct {
		flows int
		pace  int64
	}{{1, 125e6}, {8, 125e6}, {8, 0}, {64, 0}, {512, 0}} {
		t.Run(fmt.Sprintf("%d flows, %d MB per s", c.flows, c.pace/1e6), func(t *testing.T) {
			r := newRig(t, netnstest.Options{NoIPv6: true, Queue: true})
			g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
			m := r.mix(g, c.flows, c.pace)
			holds := []string{"adaptive", "0", "50us", "200us", "1ms"}
			runs := map[string][]mixRun{}
			var p50, p99 []float64
			for i := range pairs {
				off := m.run(span, "--coalesce", "off")
				runs["off"] = append(runs["off"], off)
				n := 1
				if i%4 == 0 {
					n = len(holds)
				}
				for _, h := range holds[:n] {
					on := m.run(span, "--coalesce", "on", "--hold", h)
					runs[h] = append(runs[h], on)
					if h == "adaptive" {
						p50, p99 = append(p50, on.p50/off.p50), append(p99, on.p99/off.p99)
					}
				}
			}
			slices.Sort(p50)
			slices.Sort(p99)
			low, high := pairs/4, max(pairs*3/4-1, 0) // of 20, the 6th and the 15th: the median is between them in 96 % of all cases
			t.Logf("adaptive over off, %d pairs: p50 %.2f (%.2f to %.2f), p99 %.2f (%.2f to %.2f)", pairs, p50[pairs/2], p50[low], p50[high], p99[pairs/2], p99[low], p99[high])
			for _, h := range append([]string{"off"}, holds...) {
				of := func(f func(*mixRun) float64) float64 { return middle(runs[h], f) }
				t.Logf("%8s: p50 %6.0f us, p99 %6.0f us, bulk %5.2f Gb/s, worker %.2f s per GB, %4.1f segments a superframe, %3.0f %% of the bytes in frames above 32 KiB, hold %v", h,
					of(func(r *mixRun) float64 { return r.p50 }), of(func(r *mixRun) float64 { return r.p99 }), of(func(r *mixRun) float64 { return r.gbps }),
					of(func(r *mixRun) float64 { return r.cpu }), of(func(r *mixRun) float64 { return r.segments }), 100*of(func(r *mixRun) float64 { return r.large }),
					time.Duration(of(func(r *mixRun) float64 { return float64(r.hold) })))
			}
		})
	}
}
