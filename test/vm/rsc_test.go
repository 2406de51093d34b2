package vm

import (
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/vm/control"
)

// Bits of virtio-net (virtio 1.2, 5.1.3) that the scenarios rely on.
const (
	bitGuestTSO4 = 7
	bitGuestTSO6 = 8
	bitHostTSO4  = 11
	bitHostTSO6  = 12
	bitMrgRxbuf  = 15
	bitIndirect  = 28
	bitEventIdx  = 29
)

// Volumes. Unmerged, an emulated guest takes some 25 MB/s, so that way less goes.
const (
	coalescedBytes = 200e6
	unmergedBytes  = 20e6
	fromGuestBytes = 50e6
)

// One boot serves all of it: the path into a real guest, in every way two hosts on a wire talk.
func TestARealGuestOnTheWire(t *testing.T) {
	needVM(t)
	l := newLab(t)
	v := l.boot(Options{})
	n := nic(t, v)
	for _, bit := range []int{bitGuestTSO4, bitGuestTSO6, bitHostTSO4, bitHostTSO6, bitMrgRxbuf} {
		if !n.Has(bit) {
			t.Errorf("feature %d was not negotiated: %s", bit, n.Features)
		}
	}

	do(t, v, 10*time.Second, control.OpEcho, control.Echo{Port: 7}, nil)
	l.echo(7)
	for _, f := range l.families() {
		t.Run("echo "+f.name, func(t *testing.T) { l.echoes(t, v, f) })
		t.Run("neighbours "+f.name, func(t *testing.T) { l.neighbours(t, v, f) })
	}
	for i, f := range l.families() {
		seed := uint64(10 * (i + 1))
		t.Run("coalesced "+f.name, func(t *testing.T) {
			l.must("policy", "set", guestName, "--coalesce", "on")
			r, got := toGuest(t, v, load{from: l.a, to: f.guest, bytes: coalescedBytes, seed: seed})
			checkTransfer(t, "to the guest", r, seed, coalescedBytes)
			t.Log(got)
			if got.mean() <= 15000 {
				t.Errorf("mean guest frame %.0f bytes, want more than 15,000", got.mean())
			}
			noErrors(t, got)
		})
		t.Run("unmerged "+f.name, func(t *testing.T) {
			l.must("policy", "set", guestName, "--coalesce", "off")
			r, got := toGuest(t, v, load{from: l.a, to: f.guest, bytes: unmergedBytes, seed: seed + 1})
			checkTransfer(t, "to the guest", r, seed+1, unmergedBytes)
			t.Log(got)
			if got.mean() > maxFrame {
				t.Errorf("mean guest frame %.0f bytes, want at most %d", got.mean(), maxFrame)
			}
			noErrors(t, got)
		})
		t.Run("from the guest "+f.name, func(t *testing.T) {
			before := nic(t, v)
			r := fromGuest(t, v, l.a, f.sender, seed+2, fromGuestBytes)
			checkTransfer(t, "from the guest", r, seed+2, fromGuestBytes)
			after := nic(t, v)
			frames := after.Stats["tx_packets"] - before.Stats["tx_packets"]
			mean := float64(after.Stats["tx_bytes"]-before.Stats["tx_bytes"]) / float64(max(frames, 1))
			t.Logf("the guest gave us %d frames of %.0f bytes in the mean", frames, mean)
			if mean <= maxFrame {
				t.Errorf("mean frame of the guest %.0f bytes: it did not leave segmentation to us", mean)
			}
		})
		t.Run("from the guest to a cable "+f.name, func(t *testing.T) {
			j := l.judge(t)
			r := fromGuest(t, v, l.a, f.sender, seed+3, fromGuestBytes)
			j.result(t, fromGuestBytes)
			checkTransfer(t, "from the guest", r, seed+3, fromGuestBytes)
		})
	}
	t.Log(l.must("stats", "--vm", guestName))
}

func noErrors(t *testing.T, f frames) {
	t.Helper()
	if f.rxErrors != 0 {
		t.Errorf("the guest's driver refused %d frames", f.rxErrors)
	}
}

// echoes: ICMP and UDP of small and of full size, both ways.
func (l *lab) echoes(t *testing.T, v *VM, f family) {
	const trips = 10
	for _, size := range []int{1, 56, f.full, 1472} { // 1472 needs two fragments of IPv6
		check := func(what string, r *control.ProbeResult, err error) {
			t.Helper()
			if err != nil || r.Answered != r.Sent {
				t.Errorf("%s of %d bytes: %+v, %v", what, size, r, err)
			}
		}
		out := control.Probe{To: f.guest, Size: size, Count: trips, Timeout: patience(5 * time.Second)}
		r, err := l.ping(out)
		check("ping of the guest", r, err)
		out.To = udpAddr(f.guest)
		r, err = l.udp(out)
		check("UDP to the guest", r, err)

		in := control.Probe{To: f.sender, Size: size, Count: trips, Timeout: patience(5 * time.Second)}
		r = &control.ProbeResult{}
		check("ping from the guest", r, v.Do(t.Context(), control.OpPing, in, r))
		in.To = udpAddr(f.sender)
		r = &control.ProbeResult{}
		check("UDP from the guest", r, v.Do(t.Context(), control.OpUDP, in, r))
	}
}

func udpAddr(ip string) string {
	if len(ip) > 0 && ip[0] == 'f' {
		ip = "[" + ip + "]"
	}
	return fmt.Sprintf("%s:7", ip)
}

// neighbours: either side finds the other again after it has forgotten its address: ARP and neighbour discovery, requests
// by broadcast and multicast, answers by unicast.
func (l *lab) neighbours(t *testing.T, v *VM, f family) {
	for range 3 {
		l.a.Do(t, func() error {
			for _, kind := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				list, err := netlink.NeighList(l.a.Index, kind)
				if err != nil {
					return err
				}
				for _, n := range list {
					_ = netlink.NeighDel(&n) // it may expire meanwhile
				}
			}
			return nil
		})
		r, err := l.ping(control.Probe{To: f.guest, Size: 56, Count: 1, Timeout: patience(5 * time.Second)})
		if err != nil || r.Answered != 1 {
			t.Errorf("the sender does not find the guest: %+v, %v", r, err)
		}
		do(t, v, 10*time.Second, control.OpForget, nil, nil)
		r = &control.ProbeResult{}
		err = v.Do(t.Context(), control.OpPing, control.Probe{To: f.sender, Size: 56, Count: 1, Timeout: patience(5 * time.Second)}, r)
		if err != nil || r.Answered != 1 {
			t.Errorf("the guest does not find the sender: %+v, %v", r, err)
		}
	}
}
