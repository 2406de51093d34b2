package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/observe"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// observed is a host as any other, without a controller: an uplink and a VM's tap in a bridge.
func observed(t *testing.T) (*rig, *tapvm.VM) {
	t.Helper()
	netnstest.Need(t, netnstest.BPF, netnstest.TAP)
	r := &rig{t: t, net: netnstest.Pair(t, netnstest.Options{}), dir: t.TempDir(), log: &syncBuffer{}}
	r.bridge()
	vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24"), IPv6: netip.MustParsePrefix("fd77::10/64")})
	return r, vm
}

// observeRun is a run of observe in the host's namespace.
type observeRun struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

func (r *rig) startObserve(args ...string) *observeRun {
	r.t.Helper()
	o := &observeRun{cmd: exec.Command(product, append([]string{"observe", "-o", "json"}, args...)...)}
	o.cmd.Stdout, o.cmd.Stderr = &o.out, &o.err
	r.net.B.Start(r.t, o.cmd)
	return o
}

// observing starts a run that ends when it is interrupted, and waits until it counts on these interfaces.
func (r *rig) observing(devs []string, args ...string) *observeRun {
	r.t.Helper()
	o := r.startObserve(append(args, "--seconds", "600")...)
	r.eventually("observe counts", func() error {
		for _, dev := range devs {
			tcx, filters, _ := r.hanging(dev)
			if !slices.ContainsFunc(append(tcx, filters...), func(name string) bool { return strings.HasPrefix(name, bpf.ObserverProgramName) }) {
				return errors.New(dev + ": not yet; " + o.err.String())
			}
		}
		return nil
	})
	return o
}

// report waits for the end of a run and returns its report.
func (o *observeRun) report(t *testing.T) map[string]observe.Interface {
	t.Helper()
	if err := o.cmd.Wait(); err != nil || o.err.Len() > 0 {
		t.Fatalf("observe: %v: %s", err, &o.err)
	}
	var rep observe.Report
	if err := json.Unmarshal(o.out.Bytes(), &rep); err != nil {
		t.Fatalf("%v in %s", err, &o.out)
	}
	if rep.Schema != observe.Schema || rep.Seconds <= 0 {
		t.Errorf("%+v", rep)
	}
	out := map[string]observe.Interface{}
	for _, i := range rep.Interfaces {
		if i.Verdict == nil {
			t.Fatalf("%s: no verdict: %s", i.Name, i.Error)
		}
		t.Logf("%s: %.1f segments a frame, %.1f a train: %s", i.Name, i.SegmentsPerFrame, i.SegmentsPerTrain, i.Verdict.Text)
		out[i.Name] = i
	}
	return out
}

func (o *observeRun) interrupt(t *testing.T) map[string]observe.Interface {
	t.Helper()
	return o.end(t, syscall.SIGINT)
}

func (o *observeRun) end(t *testing.T, sig syscall.Signal) map[string]observe.Interface {
	t.Helper()
	if err := o.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	return o.report(t)
}

// hanging returns the names of the TCX programs and of the TC filters on both sides of an interface of the host, and whether it has a
// qdisc for filters.
func (r *rig) hanging(dev string) (tcx, filters []string, qdisc bool) {
	r.t.Helper()
	r.net.B.Do(r.t, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		all, err := netlink.QdiscList(l)
		if err != nil {
			return err
		}
		for _, q := range all {
			qdisc = qdisc || q.Attrs().Parent == netlink.HANDLE_CLSACT
		}
		for parent, at := range map[uint32]ebpf.AttachType{netlink.HANDLE_MIN_INGRESS: ebpf.AttachTCXIngress, netlink.HANDLE_MIN_EGRESS: ebpf.AttachTCXEgress} {
			list, err := netlink.FilterList(l, parent)
			if err != nil {
				return err
			}
			for _, f := range list {
				filters = append(filters, f.(*netlink.BpfFilter).Name)
			}
			res, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
			if err != nil {
				continue // no TCX
			}
			for _, p := range res.Programs {
				prog, err := ebpf.NewProgramFromID(p.ID)
				if err != nil {
					continue // it went meanwhile
				}
				info, err := prog.Info()
				prog.Close()
				if err != nil {
					return err
				}
				tcx = append(tcx, info.Name)
			}
		}
		return nil
	})
	return tcx, filters, qdisc
}

// clean fails the test unless nothing hangs on the interfaces.
func (r *rig) clean(when string, devs ...string) {
	r.t.Helper()
	for _, dev := range devs {
		if tcx, filters, qdisc := r.hanging(dev); len(tcx)+len(filters) > 0 || qdisc {
			r.t.Errorf("%s: %s has programs %q, filters %q, qdisc %t", when, dev, tcx, filters, qdisc)
		}
	}
}

// The same host gets two verdicts, with the kernel's GRO on the uplink and without. An interrupted run says what it has seen, and leaves
// nothing.
func TestObserveTellsWhetherTheKernelMerges(t *testing.T) {
	r, vm := observed(t)
	up, emulated := r.net.B.Dev, netnstest.Emulated()
	for _, v6 := range []bool{false, true} {
		for _, gro := range []bool{true, false} {
			r.net.B.SetOffload(t, "rx-gro", gro)
			o := r.observing([]string{"vm0", up}, "--all")
			netnstest.Bulk(t, r.net.A, vm.Guest, toTap, v6, 3*time.Minute)
			got := o.interrupt(t)
			r.clean("after the run", "vm0", up)
			tap, uplink := got["vm0"], got[up]
			if tap.Kind != observe.Tap || uplink.Kind != observe.Uplink || tap.Bridge != "br0" || tap.Takes == nil || !tap.Takes.IPv4 || !tap.Takes.IPv6 {
				t.Fatalf("%+v", got)
			}
			var bytes uint64
			for _, b := range tap.Bulk {
				bytes += b.Bytes
			}
			if bytes < toTap*9/10 {
				t.Errorf("IPv6 %t, GRO %t: %d of %d bytes are bulk", v6, gro, bytes, toTap)
			}
			if gro {
				// An emulated machine's sender is too slow for frames as large as that.
				if tap.SegmentsPerFrame < 2 || !emulated && (tap.Verdict.Code != observe.Merged || uplink.Verdict.Code != observe.Merged || tap.Share22 == 0) {
					t.Errorf("IPv6 %t, GRO on: %+v, %+v", v6, *tap.Verdict, *uplink.Verdict)
				}
				continue
			}
			if tap.SegmentsPerFrame > 1.01 || uplink.SegmentsPerFrame > 1.01 || tap.Share22 != 0 {
				t.Errorf("IPv6 %t, GRO off: %.1f segments a frame, %.1f at the uplink", v6, tap.SegmentsPerFrame, uplink.SegmentsPerFrame)
			}
			if slow := emulated || tap.BitsPerSec < 100e6; slow && tap.Verdict.Code != observe.Merged && tap.Verdict.Code != observe.Partly {
				continue // there is little to save, and it says so
			}
			if tap.Verdict.Code != observe.Single || !strings.Contains(tap.Verdict.Text, "ethtool -K "+up+" gro on") || tap.Saving.GuestGRO <= 0 {
				t.Errorf("IPv6 %t, GRO off: %+v, %+v", v6, *tap.Verdict, tap.Saving)
			}
		}
	}
}

// What the kernel merges for a VM that does not take it is cut again.
func TestObserveOfAVMThatTakesNoLargeFrames(t *testing.T) {
	r, vm := observed(t)
	r.net.B.SetOffload(t, "rx-gro", true)
	if err := vm.SetOffload(tapvm.CSUM); err != nil {
		t.Fatal(err)
	}
	o := r.observing([]string{"vm0"}, "vm0")
	netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, false, 3*time.Minute)
	tap := o.interrupt(t)["vm0"]
	if tap.Verdict.Code != observe.Refused || tap.SegmentsPerFrame != 1 || tap.Takes.IPv4 {
		t.Errorf("%+v, %+v", tap, *tap.Verdict)
	}
}

// A VM that a controller serves is not taken for one that the kernel's GRO serves.
func TestObserveOfAnAttachedVM(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	o := r.observing([]string{"vm0"}, "vm0")
	netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, false, 3*time.Minute)
	tap := o.interrupt(t)["vm0"]
	if tap.Verdict.Code != observe.Served || tap.SegmentsPerFrame < 2 {
		t.Errorf("%+v, %+v", tap, *tap.Verdict)
	}
	if tcx, filters, _ := r.hanging("vm0"); !slices.Contains(append(tcx, filters...), bpf.TapProgramName) && !slices.Contains(filters, bpf.TapProgramName+"+clsact") {
		t.Errorf("the controller's program is gone: %q, %q", tcx, filters)
	}
}

// It ends when its time is over, and with a report when it is told to or its terminal goes away.
func TestObserveEndsClean(t *testing.T) {
	r, _ := observed(t)
	got := r.startObserve("--seconds", "1").report(t)
	if len(got) != 1 || got["vm0"].Verdict.Code != observe.TooLittle {
		t.Errorf("%+v", got)
	}
	r.clean("after the run", "vm0", r.net.B.Dev)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		r.observing([]string{"vm0"}).end(t, sig)
		r.clean("after "+sig.String(), "vm0")
	}
}

// After kill -9 nothing counts on; where only clsact is to be had, the next run takes the filter off.
func TestAKilledObserveCountsNoMore(t *testing.T) {
	r, _ := observed(t)
	o := r.observing([]string{"vm0"}, "vm0")
	tcx, _, _ := r.hanging("vm0")
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait()
	if len(tcx) > 0 {
		r.eventually("the kernel takes the program off", func() error {
			if tcx, _, _ := r.hanging("vm0"); len(tcx) > 0 {
				return errors.New(strings.Join(tcx, " "))
			}
			return nil
		})
		r.clean("after the kill", "vm0")
		r.leaveFilter("vm0") // as it would be before Linux 6.6
	}
	if _, filters, qdisc := r.hanging("vm0"); !slices.Equal(filters, []string{bpf.ObserverProgramName + "+clsact"}) || !qdisc {
		t.Fatalf("filters %q, qdisc %t", filters, qdisc)
	}
	r.startObserve("--seconds", "1", r.net.B.Dev).report(t)
	r.clean("after the next run", "vm0", r.net.B.Dev)
}

// leaveFilter leaves what a killed run leaves where there is no TCX.
func (r *rig) leaveFilter(dev string) {
	r.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer prog.Close()
	r.net.B.Do(r.t, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: at}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{Fd: prog.FD(), Name: bpf.ObserverProgramName + "+clsact", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1}})
	})
}

// Two runs do not take each other's programs away: with TCX both count, otherwise the second is told to wait.
func TestTwoObserversAtOnce(t *testing.T) {
	r, _ := observed(t)
	first := r.observing([]string{"vm0"}, "vm0")
	tcx, _, _ := r.hanging("vm0")
	second := r.startObserve("--seconds", "1", "vm0")
	if len(tcx) > 0 {
		second.report(t)
	} else if err := second.cmd.Wait(); err == nil || second.cmd.ProcessState.ExitCode() != 1 || strings.Count(second.err.String(), "\n") != 1 {
		t.Errorf("%v: %s", err, &second.err)
	}
	if tcx, filters, _ := r.hanging("vm0"); len(tcx)+len(filters) != 1 {
		t.Errorf("of the first there are %q, %q", tcx, filters)
	}
	first.interrupt(t)
	r.clean("after both", "vm0")
}

// A tap that goes away while it is counted, and what cannot be observed.
func TestObserveOfWhatIsNotThere(t *testing.T) {
	r, vm := observed(t)
	o := r.observing([]string{"vm0", r.net.B.Dev}, "--all")
	vm.Kill()
	if got := o.interrupt(t); len(got) != 2 {
		t.Errorf("%+v", got)
	}
	for _, tc := range []struct {
		args []string
		says string
	}{
		{nil, "no VM has a tap open"}, {[]string{"vm0"}, "vm0"}, {[]string{"br0"}, "bridge link"}, {[]string{r.net.B.Dev, "nosuch0"}, "nosuch0"},
	} {
		o := r.startObserve(append(tc.args, "--seconds", "1")...)
		if err := o.cmd.Wait(); err == nil || o.cmd.ProcessState.ExitCode() != 1 || strings.Count(o.err.String(), "\n") != 1 || !strings.Contains(o.err.String(), tc.says) {
			t.Errorf("%v: %v: %s%s", tc.args, err, &o.err, &o.out)
		}
	}
}
