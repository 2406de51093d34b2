package vring_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// stream runs a driver and a device against each other in two goroutines that sleep whenever the ring says they may.
// Every chain carries bytes that tell its number in both directions, so a chain lost, doubled, reordered or mixed up
// shows, a wake-up lost by the notification rules ends in the timeout, and the race detector sees the ordering.
type stream struct {
	g          *vringtest.Guest
	dev        vring.Device
	drv        *vring.Driver
	kick, call chan struct{}
	chains     int
	slot       int // bytes of buffer space per chain
	kicks      int
	calls      int
	timeout    <-chan time.Time
}

func pattern(chain, i int) byte { return byte(chain*31 + i*7 + i>>8) }

func wake(c chan struct{}, count *int) {
	*count++
	select {
	case c <- struct{}{}:
	default: // an eventfd adds up, too
	}
}

func (s *stream) sleep(c chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-s.timeout:
		return false
	}
}

// drive posts all chains and checks what comes back.
func (s *stream) drive(rng *rand.Rand) error {
	type posted struct{ chain, readable, writable int }
	slots := s.g.Layout.Num
	free := make([]int, slots)
	for i := range free {
		free[i] = i
	}
	state := make([]posted, slots)
	var bufs []vring.Buffer
	for sent, done := 0, 0; done < s.chains; {
		for burst := rng.IntN(8) + 1; burst > 0 && sent < s.chains && len(free) > 0; burst-- {
			slot := free[len(free)-1]
			gpa := s.g.DataGPA + uint64(slot*s.slot)
			p := posted{chain: sent}
			bufs, p.readable, p.writable = s.shape(rng, bufs[:0], gpa)
			data := make([]byte, p.readable)
			for i := range data {
				data[i] = pattern(sent, i)
			}
			s.g.Write(gpa, data)
			if err := s.drv.Add(bufs, uint64(slot)); err == vring.ErrRingFull {
				break
			} else if err != nil {
				return fmt.Errorf("chain %d of %d buffers: %w", sent, len(bufs), err)
			}
			free = free[:len(free)-1]
			state[slot] = p
			sent++
		}
		if s.drv.Publish() {
			wake(s.kick, &s.kicks)
		}
		if rng.IntN(4) == 0 {
			s.drv.DisableCalls()
		}
		got := false
		for {
			token, n, ok := s.drv.Used()
			if !ok {
				break
			}
			got = true
			p := state[token]
			if p.chain != done {
				return fmt.Errorf("chain %d came back, %d was next", p.chain, done)
			}
			if int(n) > p.writable {
				return fmt.Errorf("chain %d: %d bytes written of %d", p.chain, n, p.writable)
			}
			for i, b := range s.g.Read(s.g.DataGPA+uint64(int(token)*s.slot+p.readable), int(n)) {
				if b != pattern(^p.chain, i) {
					return fmt.Errorf("chain %d: byte %d is wrong", p.chain, i)
				}
			}
			free = append(free, int(token))
			done++
		}
		if err := s.drv.Err(); err != nil {
			return err
		}
		if !got && done < s.chains && !s.drv.EnableCalls() && !s.sleep(s.call) {
			return fmt.Errorf("driver slept for ever: %d sent, %d done", sent, done)
		}
	}
	return nil
}

// shape cuts a slot into buffers: bytes, headers alone, odd tails.
func (s *stream) shape(rng *rand.Rand, bufs []vring.Buffer, gpa uint64) (_ []vring.Buffer, readable, writable int) {
	most := min(s.g.Layout.Num, 6)
	for left, i := s.slot, 0; i == 0 || i < most && left > 0 && rng.IntN(3) != 0; i++ {
		n := 1
		switch rng.IntN(4) {
		case 0:
			n = min(left, 12)
		case 1, 2:
			n = 1 + rng.IntN(left)
		}
		w := writable > 0 || rng.IntN(2) == 0
		bufs = append(bufs, vring.Buffer{Addr: gpa, Len: uint32(n), Writable: w})
		if w {
			writable += n
		} else {
			readable += n
		}
		gpa += uint64(n)
		left -= n
	}
	return bufs, readable, writable
}

// serve takes every chain, checks it and answers it, rewinding now and then.
func (s *stream) serve(rng *rand.Rand) error {
	var c vring.Chain
	take := func(chain int) (bool, error) {
		ok, err := s.dev.Next(&c)
		if !ok {
			return false, err
		}
		i := 0
		for _, p := range c.Readable {
			for _, b := range p {
				if b != pattern(chain, i) {
					return false, fmt.Errorf("chain %d: readable byte %d of %d is wrong", chain, i, c.ReadLen)
				}
				i++
			}
		}
		if i != c.ReadLen {
			return false, fmt.Errorf("chain %d: %d bytes, %d counted", chain, i, c.ReadLen)
		}
		n := rng.IntN(c.WriteLen + 1)
		for i, left := 0, n; left > 0; i++ {
			p := c.Writable[i]
			p = p[:min(left, len(p))]
			for j := range p {
				p[j] = pattern(^chain, n-left+j)
			}
			left -= len(p)
		}
		s.dev.Push([]vring.Used{{Head: c.Head, Written: uint32(n)}})
		return true, nil
	}
	for served := 0; served < s.chains; {
		if rng.IntN(4) == 0 {
			s.dev.DisableNotify()
		}
		m, n := s.dev.Mark(), 0
		for burst := rng.IntN(20) + 1; n < burst; n++ {
			ok, err := take(served + n)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
		}
		if rng.IntN(3) == 0 {
			s.dev.Rewind(m)
			continue
		}
		served += n
		if s.dev.Publish() {
			wake(s.call, &s.calls)
		}
		if n == 0 && !s.dev.EnableNotify() && !s.sleep(s.kick) {
			return fmt.Errorf("device slept for ever: %d served", served)
		}
	}
	return nil
}

func runStream(t *testing.T, o vringtest.Options, chains int) *stream {
	const slot = 96
	o.Data = slot * o.Num
	g := vringtest.New(o)
	drv, err := g.Driver()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := g.Device()
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{
		g: g, dev: dev, drv: drv, chains: chains, slot: slot,
		kick: make(chan struct{}, 1), call: make(chan struct{}, 1), timeout: time.After(time.Minute),
	}
	seed := rand.Uint64()
	var wg sync.WaitGroup
	for i, side := range []func(*rand.Rand) error{s.drive, s.serve} {
		wg.Go(func() {
			if err := side(rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
				t.Errorf("seed %#x: %v", seed, err)
			}
		})
	}
	wg.Wait()
	return s
}

func TestEveryChainArrivesOnceInOrderAndWhole(t *testing.T) {
	chains := 3000
	for _, num := range []int{1, 2, 8, 256} {
		for _, f := range []virtio.Features{0, virtio.Mask(virtio.FIndirectDesc), virtio.Mask(virtio.FEventIdx), virtio.Mask(virtio.FIndirectDesc, virtio.FEventIdx)} {
			for _, split := range []int{0, 41} {
				if split > 0 && num*96/split > 400 {
					split = 8192
				}
				t.Run(fmt.Sprintf("num=%d/%v/split=%d", num, f.Names(), split), func(t *testing.T) {
					runStream(t, vringtest.Options{Num: num, Features: f, Indirect: 6, Split: split}, chains)
				})
			}
		}
	}
}

func TestIndexesWrapAround(t *testing.T) {
	for _, f := range []virtio.Features{virtio.Mask(virtio.FIndirectDesc), virtio.Mask(virtio.FIndirectDesc, virtio.FEventIdx)} {
		s := runStream(t, vringtest.Options{Num: 64, Features: f, Indirect: 6}, 70000)
		if s.dev.Base() != vringtest.At(70000-65536) || s.g.UsedIdx() != 70000-65536 {
			t.Errorf("indexes %d and %d after 70000 chains", s.dev.Base().Num(), s.g.UsedIdx())
		}
	}
}

func TestTheLargestRingWorks(t *testing.T) {
	s := runStream(t, vringtest.Options{Num: vring.MaxSize, Features: virtio.Mask(virtio.FEventIdx)}, 40000)
	if s.drv.Free() != vring.MaxSize || s.drv.Outstanding() != 0 {
		t.Errorf("%d descriptors free, %d chains out", s.drv.Free(), s.drv.Outstanding())
	}
}
