package vm

import (
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
)

// superframes is the least mean frame, in bytes, of a guest that takes superframes: far above what a few segments make,
// and under half of what was measured with every shape below on two busy cores (43,500 to 56,900).
const superframes = 20000

// Every shape of virtqueue a QEMU user may choose carries the same traffic.
func TestEveryNICShape(t *testing.T) {
	needVM(t)
	needLong(t)
	for name, c := range map[string]struct {
		o       Options
		off     []int // features that must be absent
		minMean float64
	}{
		"rx_queue_size 256":  {Options{RxQueue: 256}, nil, superframes},
		"mrg_rxbuf off":      {Options{NoMrgRxbuf: true}, []int{bitMrgRxbuf}, superframes},
		"two queue pairs":    {Options{Pairs: 2, CPUs: 2}, nil, superframes},
		"indirect_desc off":  {Options{NoIndirect: true}, []int{bitIndirect}, superframes},
		"QEMU listens":       {Options{Serve: true}, nil, superframes},
		"event_idx off":      {Options{NoEventIdx: true}, []int{bitEventIdx}, superframes},
		"neither offload rx": {Options{Device: []string{"guest_tso4=off", "guest_tso6=off"}}, []int{bitGuestTSO4, bitGuestTSO6}, 0},
		"no offload at all": {Options{Device: []string{
			"guest_csum=off", "guest_tso4=off", "guest_tso6=off", "guest_ecn=off", "guest_ufo=off",
			"csum=off", "host_tso4=off", "host_tso6=off", "host_ecn=off", "host_ufo=off", "gso=off",
		}}, []int{bitGuestTSO4, bitHostTSO4}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var attach []string
			if c.o.Serve {
				attach = []string{"--connect"}
			}
			l := newLab(t, attach...)
			v := l.boot(c.o)
			n := nic(t, v)
			for _, bit := range c.off {
				if n.Has(bit) {
					t.Errorf("feature %d was negotiated", bit)
				}
			}
			if c.o.Pairs > 1 && n.RxQueues != c.o.Pairs {
				t.Errorf("%d receive queues", n.RxQueues)
			}
			l.bothWays(t, v, c.minMean)
		})
	}
}

// QEMU tells the back-end the MTU (NET_SET_MTU) and does not start a device whose back-end says no.
func TestAGuestWithAnMTUOfItsHost(t *testing.T) {
	needVM(t)
	needLong(t)
	l := newLab(t)
	v := l.boot(Options{Device: []string{"host_mtu=1400"}})
	if n := nic(t, v); !n.Has(bitMTU) {
		t.Error("feature MTU was not negotiated")
	}
	l.bothWays(t, v, superframes)
}

// bitMTU is VIRTIO_NET_F_MTU.
const bitMTU = 3

// bothWays sends some both ways over both families.
func (l *lab) bothWays(t *testing.T, v *VM, minMean float64) {
	t.Helper()
	const bytes = 30e6
	for i, f := range l.families() {
		seed := uint64(100 + 10*i)
		r, got := toGuest(t, v, load{from: l.a, to: f.guest, bytes: bytes, seed: seed})
		checkTransfer(t, "to the guest, "+f.name, r, seed, bytes)
		noErrors(t, got)
		t.Log(got)
		if got.mean() < minMean {
			t.Errorf("mean guest frame %.0f bytes, want at least %.0f", got.mean(), minMean)
		}
		if minMean == 0 && got.mean() > maxFrame {
			t.Errorf("mean guest frame %.0f bytes for a guest that takes no superframes", got.mean())
		}
		j := l.judge(t)
		r = fromGuest(t, v, l.a, f.sender, seed+1, bytes)
		j.result(t, bytes)
		checkTransfer(t, "from the guest, "+f.name, r, seed+1, bytes)
	}
}

// A transfer that loses its controller half-way ends with all its bytes once the next has taken over.
func TestTransferSurvivesAKilledController(t *testing.T) {
	needVM(t)
	needLong(t)
	l := newLab(t)
	v := l.boot(Options{})
	const bytes, seed = 300e6, 41
	l.interrupted(t, v, bytes, seed, func() {
		l.controller.kill()
		time.Sleep(time.Second) // without any, as an operator's supervisor would have it
		l.run()
	})
	l.bothWays(t, v, superframes)
}

// interrupted sends into the guest and does something while bytes flow; the transfer must end whole.
func (l *lab) interrupted(t *testing.T, v *VM, bytes int64, seed uint64, what func()) {
	t.Helper()
	do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
	before := nic(t, v)
	got := receiveAsync(t, v, control.Receive{Port: guestPort, Timeout: transferWithin})
	sent := make(chan error, 1)
	go func() {
		_, err := send(load{from: l.a, to: guestIPv4, bytes: bytes, seed: seed})
		sent <- err
	}()
	l.flowing(t, v, before, uint64(bytes)/10)
	select {
	case <-got:
		t.Fatal("the transfer ended before it could be interrupted")
	default:
	}
	what()
	if err := <-sent; err != nil {
		t.Errorf("sender: %v", err)
	}
	checkTransfer(t, "interrupted", <-got, seed, bytes)
}

// flowing waits until the guest has received some.
func (l *lab) flowing(t *testing.T, v *VM, before control.NIC, bytes uint64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if nic(t, v).Stats["rx_bytes"]-before.Stats["rx_bytes"] >= bytes {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing flows")
		}
	}
}

// The guest resets its device and negotiates again, by a reload of the driver and by a reboot.
func TestGuestReloadsItsDriverAndReboots(t *testing.T) {
	needVM(t)
	needLong(t)
	l := newLab(t)
	v := l.boot(Options{})
	for range 3 {
		do(t, v, 30*time.Second, control.OpRebind, nil, nil)
		l.configure(v)
	}
	l.bothWays(t, v, superframes)

	do(t, v, 30*time.Second, control.OpReboot, nil, nil)
	ready(t, v)
	l.configure(v)
	l.bothWays(t, v, superframes)

	// A reload under load: the connection outlives the NIC, because TCP does not know of it. (The address goes with the
	// interface and comes back.)
	const bytes, seed = 200e6, 43
	l.interrupted(t, v, bytes, seed, func() {
		do(t, v, 30*time.Second, control.OpRebind, nil, nil)
		l.configure(v)
	})
}

// QEMU dies in mid-transfer; the next one on the same socket works as if nothing had been.
func TestANewQEMUTakesOverTheSocket(t *testing.T) {
	needVM(t)
	needLong(t)
	l := newLab(t)
	for range 3 {
		v := l.boot(Options{})
		do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
		before := nic(t, v)
		got := receiveAsync(t, v, control.Receive{Port: guestPort, Timeout: transferWithin})
		sent := make(chan error, 1)
		c, err := l.connect()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := sendOn(c, 44, 500e6)
			sent <- err
		}()
		l.flowing(t, v, before, 20e6)
		v.Kill()
		<-got
		// The sender would retransmit into the void for many minutes.
		c.Close()
		if err := <-sent; err == nil {
			t.Error("the sender finished although its receiver was killed")
		}
	}
	l.bothWays(t, l.boot(Options{}), superframes)
}
