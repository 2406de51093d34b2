package e2e

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// tcpFrame is a TCP segment of IPv4 with a text in it, which XDP steers. Its checksums are left out: nobody merges it.
func tcpFrame(dst, src net.HardwareAddr, text string) []byte {
	ip := make([]byte, 40, 40+len(text))
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(text)))
	copy(ip[12:], []byte{10, 77, 0, 1, 10, 77, 0, dst[5]})
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 80)
	ip[32], ip[33] = 0x50, 0x10
	return netnstest.Ethernet(dst, src, 0x0800, append(ip, text...))
}

// carries matches a frame of TCP with a text in it.
func carries(text string) func(netnstest.Frame) bool {
	return func(f netnstest.Frame) bool {
		return len(f.Data) > 54 && strings.HasPrefix(string(f.Data[54:]), text)
	}
}

// pour sends TCP to both VMs all the time, until the test's end.
func (r *rig) pour() {
	r.t.Helper()
	in := r.net.A.Injector(r.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	toA, toB := tcpFrame(mac(r.t, macA), r.net.A.MAC, "for A"), tcpFrame(mac(r.t, macB), r.net.A.MAC, "for B")
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = in.Send(toA) // the wire is the test's, and no interface on it goes down
			_ = in.Send(toB)
			time.Sleep(200 * time.Microsecond)
		}
	}()
	r.t.Cleanup(func() { cancel(); <-done })
}

// onTap starts a VM on a tap to which the bridge sends what it knows to be there and nothing else, so that a foreign frame is ours.
func (r *rig) onTap(o tapvm.Options) (*tapvm.VM, *netnstest.Capture) {
	r.t.Helper()
	vm := r.tapVM(o)
	r.net.B.Output(r.t, "ip", "link", "set", "dev", o.Tap, "type", "bridge_slave", "flood", "off")
	return vm, vm.Guest.Capture(r.t)
}

// served waits until both VMs are steered, each behind the tap that it is behind.
func (r *rig) served(want map[string]string) {
	r.t.Helper()
	r.eventually("both VMs are served again", func() error {
		var st api.Status
		r.json(&st, "status")
		n := 0
		for _, i := range st.Interfaces {
			for _, p := range i.Ports {
				if p.Tap != want[p.VM] {
					r.t.Errorf("VM %s is said to be behind %s, it is behind %s", p.VM, p.Tap, want[p.VM])
				}
				if p.Mode == "steered" && p.Proof != "" {
					n++
				}
			}
		}
		if n != len(want) {
			return errNotYet
		}
		return nil
	})
}

// libvirt gives its taps' names in the order of starts. Two VMs that come back in another order, under a live controller and across a
// restart of it, are each served behind their own tap, and no frame of one ever reaches the other's.
func TestTapsThatChangeNamesKeepTheirVMs(t *testing.T) {
	for _, tc := range []struct {
		name           string
		before, middle func(r *rig)
	}{
		{"under a live controller", func(r *rig) {}, func(r *rig) {}},
		{"across a stop and a start", func(r *rig) { r.stop() }, func(r *rig) { r.start() }},
		{"across a crash", func(r *rig) { r.kill() }, func(r *rig) { r.start() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, netnstest.Options{NoIPv6: true})
			r.bridge()
			a := tapvm.Options{Tap: "vnet0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24")}
			b := tapvm.Options{Tap: "vnet1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")}
			vmA, inA := r.onTap(a)
			vmB, inB := r.onTap(b)
			r.must("attach", r.net.B.Dev, "--vm", "db1", "--mac", macA, "--tap", "vnet0")
			r.must("attach", r.net.B.Dev, "--vm", "db2", "--mac", macB, "--tap", "vnet1")
			r.pour()
			foreign := func(c *netnstest.Capture, text string) {
				t.Helper()
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
					f, ok := c.Poll(200 * time.Millisecond)
					if !ok {
						return
					}
					if carries(text)(f) {
						t.Fatalf("a VM got a frame %q", text)
					}
				}
			}
			inA.Until(5*time.Second, carries("for A"))
			inB.Until(5*time.Second, carries("for B"))

			tc.before(r)
			vmA.Kill()
			vmB.Kill()
			a.Tap, b.Tap = "vnet1", "vnet0"
			_, inB2 := r.onTap(b) // first now, and so vnet0
			_, inA2 := r.onTap(a)
			tc.middle(r)
			r.served(map[string]string{"db1": "vnet1", "db2": "vnet0"})
			inA2.Until(5*time.Second, carries("for A"))
			inB2.Until(5*time.Second, carries("for B"))
			r.stop()
			for c, text := range map[*netnstest.Capture]string{inA: "for B", inB: "for A", inA2: "for B", inB2: "for A"} {
				foreign(c, text)
			}
		})
	}
}

// A tap that is kept while its VM goes and another one opens it gets nothing of the first.
func TestAKeptTapThatAnotherVMOpensGetsNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.bridge()
	r.net.B.Output(t, "ip", "tuntap", "add", "dev", "vnet0", "mode", "tap", "vnet_hdr")
	vm, in := r.onTap(tapvm.Options{Tap: "vnet0", MAC: mac(t, macA), OwnMAC: true})
	r.net.B.Output(t, "ip", "link", "set", "dev", "vnet0", "address", "02:00:00:00:00:77")
	attach := []string{"attach", r.net.B.Dev, "--vm", "db1", "--mac", macA, "--tap", "vnet0"}
	if out, code := r.cli(attach...); code != 1 || !strings.Contains(out, "--trust-tap") || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Fatalf("nothing shows whose tap it is: exit %d: %s", code, out)
	}
	r.untouched(t)
	vm.Guest.Inject(t, probe(r.net.A.MAC, mac(t, macA), "here I am"))
	r.eventually("the bridge knows the VM", func() error {
		if _, code := r.cli(attach...); code != 0 {
			return errNotYet
		}
		return nil
	})
	r.pour()
	in.Until(5*time.Second, carries("for A"))
	vm.Kill()
	_, other := r.onTap(tapvm.Options{Tap: "vnet0", MAC: mac(t, macB), OwnMAC: true})
	silent(t, other, "a VM got another one's frame", carries("for A"))
	r.eventually("the VM waits, with the reason", func() error {
		if out := r.must("status"); !strings.Contains(out, "db1") {
			return errNotYet
		}
		return nil
	})
}

// The bridge's entry of the VM at another port ends steering at once, and with the entry back it goes on.
func TestAVMThatIsElsewhereIsNotSteered(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	port := func() api.Port {
		var st api.Status
		r.json(&st, "status")
		return st.Interfaces[0].Ports[0]
	}
	if p := port(); p.Mode != "steered" {
		t.Fatalf("%+v", p)
	}
	r.eventually("the VM has the kernel's path", func() error {
		r.net.A.Inject(t, probe(r.net.B.MAC, mac(t, macA), "I have moved")) // as after a migration to another host
		if p := port(); p.Mode != "kernel" || !strings.Contains(p.StopReason, r.net.B.Dev) || len(p.Warnings) == 0 {
			return errNotYet
		}
		return nil
	})
	r.eventually("the VM is steered again", func() error {
		vm.Guest.Inject(t, probe(r.net.A.MAC, mac(t, macA), "back"))
		if p := port(); p.Mode != "steered" || p.StopReason != "" {
			return errNotYet
		}
		return nil
	})
	r.merged(r.net.A, vm, toTap, false)
}
