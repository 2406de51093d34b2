package e2e

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// What is true when a VM is attached and changes later is acted on as if it had been so at attach.

// port is the first VM's row of status, nil while none is attached.
func (r *rig) firstPort() *api.Port {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces) == 0 || len(st.Interfaces[0].Ports) == 0 {
		return nil
	}
	return &st.Interfaces[0].Ports[0]
}

// left waits until the VM is left to the kernel's path for a reason that has these words in it.
func (r *rig) left(words ...string) {
	r.t.Helper()
	r.eventually("the VM is left to the kernel's path", func() error {
		p := r.firstPort()
		if p == nil || p.Mode != "kernel" || p.StopReason == "" || len(p.Warnings) == 0 {
			return errNotYet
		}
		for _, w := range words {
			if !strings.Contains(p.StopReason, w) {
				return fmt.Errorf("the reason %q does not say %q", p.StopReason, w)
			}
		}
		return nil
	})
}

func (r *rig) steered() {
	r.t.Helper()
	r.eventually("the VM is steered", func() error {
		if p := r.firstPort(); p == nil || p.Mode != "steered" || p.StopReason != "" {
			return errNotYet
		}
		return nil
	})
}

// Rules, port settings and membership that change after attach end steering with the reason, and with them gone it goes on.
func TestWhatFiltersAPathLaterEndsSteering(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	run := func(command string) { r.net.B.Output(t, "sh", "-c", command) }
	for _, tc := range []struct {
		name, on, off string
		words         []string
	}{
		{"a TC filter of the uplink", "tc qdisc add dev " + dev + " clsact && tc filter add dev " + dev + " ingress protocol all u32 match u32 0 0 flowid 1:1", "tc qdisc del dev " + dev + " clsact", []string{"TC ingress of " + dev, "--bypass-filters"}},
		{"isolated ports", "ip link set " + dev + " type bridge_slave isolated on && ip link set vm0 type bridge_slave isolated on", "ip link set vm0 type bridge_slave isolated off", []string{"isolated"}},
		{"the tap is taken out", "ip link set vm0 nomaster", "ip link set vm0 master br0", []string{"vm0 is in no bridge"}},
		{"the uplink is taken out", "ip link set " + dev + " nomaster", "ip link set " + dev + " master br0", []string{"not in a bridge with " + dev}},
		{"the tap moves to another bridge", "ip link add br9 type bridge && ip link set vm0 master br9", "ip link set vm0 master br0 && ip link del br9", []string{"in br9"}},
		{"the tap gets another VM's address", "ip link set vm0 address fe:54:00:99:99:99", "ip link set vm0 address fe:54:00:00:00:0a", []string{"fe:54:00:99:99:99"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.HasPrefix(tc.on, "tc ") {
				netnstest.Need(t, netnstest.Tool("tc"))
			}
			run(tc.on)
			r.left(tc.words...)
			run(tc.off)
			r.steered()
		})
	}
	r.merged(r.net.A, vm, toTap, false)
}

// What the operator has agreed to bypass is shown as it is now, and ends nothing.
func TestBypassedRulesThatComeLaterAreShown(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true}, "--bypass-filters")
	r.isolate(true)
	r.eventually("status shows what is bypassed", func() error {
		if p := r.firstPort(); len(p.Bypassed) == 0 || p.Mode != "steered" {
			return errNotYet
		}
		return nil
	})
	r.isolate(false)
	r.merged(r.net.A, vm, toTap, false)
}

// An offload that hides tags from XDP and is switched on later is switched off again, and detach restores what was at first.
func TestAnOffloadThatIsSwitchedOnLaterIsSwitchedOff(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	r.net.B.SetOffload(t, netdev.RxVLAN, true)
	r.eventually("it is off again", func() error {
		return r.net.B.NS.Do(func() error {
			on, err := offload(r.net.B.Dev, netdev.RxVLAN)
			if err == nil && on {
				err = errNotYet
			}
			return err
		})
	})
	r.merged(r.net.A, vm, toTap, false)
}

// An XDP link that somebody takes off is put on again; who takes it off again and again does not make the interface flap each second,
// and status says why the VM waits.
func TestAProgramThatIsTakenOffIsPutOnAgain(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	takeOff := func() bool {
		var now *netdev.Facts
		if err := r.net.B.NS.Do(func() (err error) { now, err = netdev.Inspect(r.net.B.Dev); return err }); err != nil || !now.XDP.Attached {
			return false
		}
		it := new(link.Iterator) // over the links of the whole machine: only the program tells which is ours
		defer it.Close()
		for it.Next() {
			if info, err := it.Link.Info(); err == nil && info.Type == link.XDPType && uint32(info.Program) == now.XDP.ProgID {
				return it.Link.Detach() == nil
			}
		}
		return false
	}
	if !takeOff() {
		t.Fatal("no XDP link on the uplink")
	}
	r.eventually("noticed", func() error {
		if !strings.Contains(r.log.String(), "took the XDP program off") {
			return errNotYet
		}
		return nil
	})
	r.steered()
	r.merged(r.net.A, vm, toTap, false)
	n := 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if takeOff() {
			n++
		}
	}
	if n > 5 {
		t.Errorf("put on %d times in 8 s", n)
	}
	r.eventually("status says why, and when it is tried again", func() error {
		takeOff()
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) != 1 || !strings.Contains(st.Waiting[0].Cause, "took the XDP program off") || st.Waiting[0].NextTry.IsZero() {
			return errNotYet
		}
		return nil
	})
}

// An interface that gets another name stays attached under that, and its offloads are put back there.
func TestARenamedUplinkStaysAttached(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true, KeepTxChecksum: true}, "--fix-offloads")
	was := r.net.B.Dev
	r.net.B.Output(t, "sh", "-c", fmt.Sprintf("ip link set %s down && ip link set %s name wan0 && ip link set wan0 up", was, was))
	r.eventually("it has its new name", func() error {
		var st api.Status
		r.json(&st, "status")
		if len(st.Interfaces) != 1 || st.Interfaces[0].Name != "wan0" {
			return errNotYet
		}
		return nil
	})
	r.steered()
	r.merged(r.net.A, vm, toTap, false)
	r.kill()
	r.start() // and across a crash
	r.steered()
	if out, code := r.cli("detach", was); code != 1 {
		t.Errorf("the old name: exit %d: %s", code, out)
	}
	r.must("detach", "wan0")
	err := r.net.A.NS.Do(func() error {
		on, err := offload(r.net.A.Dev, netdev.TxChecksum)
		if err == nil && !on {
			err = fmt.Errorf("%s of %s stays off", netdev.TxChecksum, r.net.A.Dev)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// An interface that takes a VM's own address sends that VM's frames to the host: the VM is taken off, with the reason.
func TestAnUplinkThatTakesAVMsAddressLosesTheVM(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.attach("vm0", macA)
	r.attach("vm1", macB)
	r.net.B.Output(t, "ip", "link", "set", "dev", r.net.B.Dev, "address", macA)
	r.eventually("the VM waits, with the reason", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) != 1 || st.Waiting[0].VM != "vm0" || !strings.Contains(st.Waiting[0].Cause, "own") {
			return errNotYet
		}
		return nil
	})
	r.net.B.Output(t, "ip", "link", "set", "dev", r.net.B.Dev, "address", "02:00:00:00:00:0b")
	r.eventually("the VM is attached again", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) != 0 {
			return errNotYet
		}
		return nil
	})
}

// A crash at any moment of an attach leaves a note of what to put back, and the next run puts it back unless the VM is attached.
func TestACrashDuringAttachLeavesNothingChanged(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true, KeepTxChecksum: true})
	offloads := func() string {
		out := ""
		for _, o := range []struct {
			side    *netnstest.Side
			feature string
		}{{r.net.B, netdev.RxVLAN}, {r.net.A, netdev.TxChecksum}} {
			if err := o.side.NS.Do(func() error {
				on, err := offload(o.side.Dev, o.feature)
				out += fmt.Sprintf("%s %t; ", o.feature, on)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	before := offloads()
	for i := range 12 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macA, "--vhost-user", r.dir+"/x.sock", "--fix-offloads")
		}()
		time.Sleep(time.Duration(i*12) * time.Millisecond)
		r.kill()
		<-done
		r.start()
		var st api.Status
		r.json(&st, "status")
		if len(st.Interfaces) > 0 {
			r.must("detach", r.net.B.Dev)
		}
		if now := offloads(); now != before {
			t.Fatalf("try %d: %s, were %s (attached: %t)", i, now, before, len(st.Interfaces) > 0)
		}
	}
}

// offload tells whether an offload is on, in the calling thread's namespace.
func offload(dev, feature string) (on bool, err error) {
	h, err := netdev.Open()
	if err != nil {
		return false, err
	}
	on, _, err = h.Offload(dev, feature)
	return on, errors.Join(err, h.Close())
}

// An MTU that what is open holds is followed: the guest keeps its link. One that does not fit gives the interface back.
func TestAnMTUThatFitsCostsNoVMItsLink(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	up := func() time.Time {
		var st api.Status
		r.json(&st, "status")
		return st.StartedAt
	}
	began := up()
	for _, mtu := range []string{"1600", "1400", "1500"} {
		for _, side := range []*netnstest.Side{r.net.A, r.net.B} {
			side.Output(t, "ip", "link", "set", "dev", side.Dev, "mtu", mtu)
		}
		r.eventually("the new MTU is followed", func() error {
			var st api.Status
			if r.json(&st, "status"); len(st.Interfaces) != 1 || strconv.Itoa(st.Interfaces[0].MTU) != mtu {
				return errNotYet
			}
			if len(st.Waiting) != 0 {
				t.Fatalf("MTU %s: %+v", mtu, st.Waiting)
			}
			return nil
		})
	}
	if strings.Contains(r.log.String(), "given back") || !up().Equal(began) {
		t.Error("the interface was given back for an MTU that fits")
	}
	r.merged(r.net.A, vm, toTap, false)
}
