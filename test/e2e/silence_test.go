package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

// probeEvery is the pause between two questions of a silence.
const probeEvery = 200 * time.Microsecond

// silence asks a VM something all the time, by UDP: who asks by TCP measures its retransmission timer when one answer is lost. What
// counts is how long no answer came.
type silence struct {
	asked, answered atomic.Uint64

	mu      sync.Mutex
	last    time.Time
	longest time.Duration
}

// silenceOf begins to ask a VM from the sender's side, and ends with the test.
func (r *rig) silenceOf(to *netnstest.Side) *silence {
	r.t.Helper()
	var here, there *net.UDPConn
	to.Do(r.t, func() (err error) {
		there, err = net.ListenUDP("udp4", &net.UDPAddr{IP: to.IPv4.Addr().AsSlice()})
		return err
	})
	r.t.Cleanup(func() { there.Close() })
	r.net.A.Do(r.t, func() (err error) {
		here, err = net.DialUDP("udp4", nil, there.LocalAddr().(*net.UDPAddr))
		return err
	})
	r.t.Cleanup(func() { here.Close() })
	s := &silence{last: time.Now()}
	go func() { // the VM's end
		var b [8]byte
		for {
			n, from, err := there.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return
			}
			_, _ = there.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	go func() {
		var b [8]byte
		for ; ; time.Sleep(probeEvery) {
			binary.BigEndian.PutUint64(b[:], s.asked.Add(1))
			if _, err := here.Write(b[:]); err != nil {
				return
			}
		}
	}()
	go func() {
		var b [8]byte
		for {
			if _, err := here.Read(b[:]); err != nil {
				return
			}
			s.answered.Add(1)
			s.hear()
		}
	}()
	r.eventually("the VM answers", func() error {
		if s.answered.Load() == 0 {
			return errNotYet
		}
		return nil
	})
	return s
}

func (s *silence) hear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.longest = max(s.longest, now.Sub(s.last))
	s.last = now
}

// begin forgets what was before.
func (s *silence) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = 0
}

// longestSince is the longest silence since begin, which has an end: the VM has answered since.
func (s *silence) longestSince(r *rig) time.Duration {
	r.t.Helper()
	was := s.answered.Load()
	r.eventually("the VM answers again", func() error {
		if s.answered.Load() == was {
			return errNotYet
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.longest
}

// silences are the longest ones of one VM, one for each time that something was done to the controller.
type silences []time.Duration

// String is a histogram.
func (s silences) String() string {
	all := slices.Sorted(slices.Values(s))
	if len(all) == 0 {
		return "none"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d: median %v, 90%% %v, longest %v;", len(all), all[len(all)/2].Round(100*time.Microsecond), all[len(all)*9/10].Round(100*time.Microsecond),
		all[len(all)-1].Round(100*time.Microsecond))
	from := 0
	for _, ms := range []time.Duration{1, 2, 5, 10, 20, 50, 100, 200, 500} {
		end, _ := slices.BinarySearch(all, ms*time.Millisecond+1)
		if end > from {
			fmt.Fprintf(&b, " up to %d ms %d,", ms, end-from)
		}
		from = end
	}
	if len(all) > from {
		fmt.Fprintf(&b, " more %d,", len(all)-from)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// watched is a VM of each kind under load, and how long each was silent.
type watched struct {
	r     *rig
	of    map[string]*netnstest.Side
	names []string
	probe []*silence
	found []silences
	stop  chan struct{}
	done  []<-chan error
}

// watch loads the VMs with eight TCP streams in all, one in four of them out of the VM, and begins to ask each.
func (r *rig) watch(vms map[string]*netnstest.Side, streams int) *watched {
	r.t.Helper()
	w := &watched{r: r, of: vms, stop: make(chan struct{})}
	for name, side := range vms {
		w.names, w.probe, w.found = append(w.names, name), append(w.probe, r.silenceOf(side)), append(w.found, nil)
		for i := range streams / len(vms) {
			if i == 0 {
				w.done = append(w.done, r.between(side, r.net.A, w.stop))
			} else {
				w.done = append(w.done, r.transfers(side, w.stop))
			}
		}
	}
	return w
}

// around notes how long each VM was silent while something was done.
func (w *watched) around(fn func()) {
	w.r.t.Helper()
	for _, s := range w.probe {
		s.begin()
	}
	fn()
	for i, s := range w.probe {
		w.found[i] = append(w.found[i], s.longestSince(w.r))
	}
}

// end ends the load, which must have arrived whole, and reports.
func (w *watched) end(t *testing.T) {
	t.Helper()
	close(w.stop)
	for _, done := range w.done {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i, s := range w.probe {
		t.Logf("silences of %s: %v; %d of %d questions unanswered", w.names[i], w.found[i], s.asked.Load()-min(s.asked.Load(), s.answered.Load()), s.asked.Load())
	}
}
