package datapath

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A bucket is at its rate over any time, whatever the rate and the frames: of bits, of 10^12, and with superframes larger than its burst.
func TestABucketIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, rate := range []uint64{1, 8_000, 64_000, 1_000_001, 100_000_000, 25_000_000_000, 1_000_000_000_000} {
		for _, burst := range []uint64{1, 1514, 128 << 10, 1 << 30} {
			b := NewBucket(rate, burst)
			now, taken := int64(r.Uint64N(1<<55)), uint64(0)
			begin := now
			for range 20_000 {
				n := 60 + r.IntN(66_000)
				if b.takes(now, n) {
					taken += uint64(n)
					continue
				}
				next := b.ready(now)
				if next <= now {
					t.Fatalf("%d bit/s, burst %d: empty, and ready at once", rate, burst)
				}
				if now = next; next-now < 1<<40 && rate > 1 && !b.takes(now, 60) {
					t.Fatalf("%d bit/s, burst %d: not ready when it said", rate, burst)
				} else if rate > 1 {
					taken += 60
				}
				if rate == 1 {
					break
				}
			}
			most := float64(rate)*float64(now-begin)/8e9 + float64(burst) + 66_060 // a superframe is owed at most
			if float64(taken) > most {
				t.Errorf("%d bit/s, burst %d: %d bytes in %d ns, at most %.0f", rate, burst, taken, now-begin, most)
			}
			if least := float64(rate) * float64(now-begin) / 8e9; rate > 1 && burst > 1 && float64(taken) < 0.95*least-float64(burst) {
				t.Errorf("%d bit/s, burst %d: %d bytes in %d ns, at least %.0f", rate, burst, taken, now-begin, least)
			}
		}
	}
}

// What lay idle is full and no more than full, also after years.
func TestAnIdleBucketIsFull(t *testing.T) {
	b := NewBucket(1_000_000_000_000, 3000)
	for _, now := range []int64{5, int64(time.Hour), int64(500 * 24 * time.Hour), int64(1000 * 24 * time.Hour)} {
		n := 0
		for b.takes(now, 1500) {
			n++
		}
		if n != 2 {
			t.Errorf("after %s: %d frames of half a burst at once", time.Duration(now), n)
		}
	}
}

// Workers that share a bucket take no more than one would.
func TestWorkersShareABucket(t *testing.T) {
	b := NewBucket(1_000_000_000, 1_000_000)
	var wg sync.WaitGroup
	var got [4]int
	for i := range got {
		wg.Go(func() {
			for b.takes(1, 1000) {
				got[i]++
			}
		})
	}
	wg.Wait()
	if n := got[0] + got[1] + got[2] + got[3]; n != 1000 {
		t.Errorf("%d frames, want 1000", n)
	}
}

func withRates(tx, rx *Bucket) func(*PortConfig) {
	return func(c *PortConfig) { c.TxRate, c.RxRate = tx, rx }
}

// onTheWire is what frames of TSO and small ones take, and how many of a worker's steps moved nothing.
func (l *lan) onTheWire() (bytes int) {
	for _, f := range l.sent() {
		bytes += len(f)
	}
	return bytes
}

// A VM sends at its rate on the counted clock, by frames and by superframes, and nothing of it is lost; a VM beside it sends on.
func TestWhatAVMSendsIsPaced(t *testing.T) {
	for _, size := range []int{0, 20} { // packets of a TSO frame; 0: plain ones
		l := newLAN(t, 256)
		g := l.vm(withRates(NewBucket(100_000_000, 32<<10), nil))
		free := l.vm()
		h, p := virtio.NetHdr{}, pt.TCP{DstMAC: lanStation, SrcMAC: g.mac, Len: 1000}
		if size > 0 {
			h = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}
			p.Len = 1000 * size
		}
		frames := 6000 / max(1, size)
		for range frames {
			g.sends = append(g.sends, vhost.TxFrame{Hdr: h, Data: p.Frame()})
		}
		all, steps := 0, 0
		for len(g.sends) > 0 {
			for l.w.step() {
			}
			all += l.onTheWire()
			if len(g.sends) == 0 {
				break
			}
			wait := l.w.timeout()
			if wait <= 0 {
				t.Fatalf("with frames that wait for their rate the worker sleeps %s", wait)
			}
			l.now += wait
			steps++
		}
		want := float64(all-32<<10) * 8 / 100e6
		if got := l.now.Seconds(); got < 0.95*want || got > 1.05*want {
			t.Errorf("TSO of %d: %d bytes took %.4f s, want %.4f", size, all, got, want)
		}
		if most := int(l.now/(100*time.Microsecond)) + 10; steps > most {
			t.Errorf("TSO of %d: the worker woke up %d times in %s", size, steps, l.now)
		}
		dropsAre(t, "paced", l.txDropped(g), lanReasons{})
		if c := &l.w.port(0).cnt; c.TxPaced == 0 || c.TxFrames != uint64(frames) {
			t.Errorf("paced %d times, %d frames taken of %d", c.TxPaced, c.TxFrames, frames)
		}
		for l.w.port(0).TxRate.takes(int64(l.now), 1500) { // it is empty
		}
		g.sends = append(g.sends, vhost.TxFrame{Data: pt.TCP{DstMAC: lanStation, SrcMAC: g.mac, Len: 1000}.Frame()})
		l.send(free, lanFrame(lanStation, free.mac, privateType))
		sameFrames(t, "the neighbour's", l.sent(), lanFrame(lanStation, free.mac, privateType))
		cfg := l.w.port(0).PortConfig
		cfg.TxRate = nil
		if err := l.w.amendPort(cfg); err != nil {
			t.Fatal(err)
		}
		if l.w.step(); len(g.sends) != 0 {
			t.Error("a frame waits for a rate that was taken off")
		}
	}
}

// A VM gets its rate; what is more waits, within bounds, and is then dropped for what it is.
func TestWhatAVMGetsIsPaced(t *testing.T) {
	l := newLAN(t, 4096)
	bucket := NewBucket(80_000_000, 64<<10) // 10 kB a ms
	g := l.vm(withRates(nil, bucket))
	sender := l.vm()
	frame := lanFrame(g.mac, sender.mac, privateType)
	for len(frame) < 1000 {
		frame = append(frame, 0)
	}
	sent, got := 0, 0
	feed := func(each, ms int) {
		for range ms {
			for range each {
				l.send(sender, frame)
				sent++
			}
			for end := l.now + time.Millisecond; l.now < end; {
				for l.w.step() {
				}
				wait := l.w.timeout()
				if wait == 0 {
					t.Fatal("the worker does not sleep while frames wait for their rate")
				}
				if wait < 0 || l.now+wait > end {
					wait = end - l.now
				}
				l.now += wait
			}
			got += len(g.heard())
		}
	}
	feed(8, 200) // below it
	if dropsAre(t, "below the rate", l.rxDropped(g), lanReasons{}); got != sent {
		t.Errorf("%d of %d arrived", got, sent)
	}
	feed(30, 400) // three times of it
	took := 400 * 10
	if n := got - 1600; n < took*95/100 || n > took*105/100+64 {
		t.Errorf("%d frames arrived, want %d", n, took)
	}
	feed(0, 100) // what waited
	dropped := l.rxDropped(g)
	if dropped[flowtable.ReasonRate] == 0 || len(dropped) != 1 || got+int(dropped[flowtable.ReasonRate]) != sent {
		t.Errorf("%d sent, %d arrived, dropped %v", sent, got, dropped)
	}
	if left := l.w.timeout(); left >= 0 {
		t.Errorf("with nothing to do the worker sleeps %s", left)
	}
}

func TestWhatPacketsTakeOnTheWire(t *testing.T) {
	for _, c := range []struct {
		length, header, packets int
		tagged                  bool
		want                    int
	}{{1514, 0, 1, false, 1514}, {1514, 0, 1, true, 1518}, {42, 0, 1, false, 60}, {54 + 14600, 54, 10, false, 14600 + 540}, {54 + 14600, 54, 10, true, 14600 + 580}, {54 + 2, 54, 2, false, 120}} {
		if got := wireBytes(c.length, c.header, c.packets, c.tagged); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
