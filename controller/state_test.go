package controller

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/state"
)

// offHost is a controller that has a state directory and touches nothing of the host.
func offHost(t *testing.T, dir string) *Controller {
	t.Helper()
	d, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return &Controller{
		state: d, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		uplinks: map[string]*uplink{}, waiting: map[string][]*waitingVM{}, retries: retries{},
	}
}

// attachOffHost does to the controller's lists what attach does.
func (c *Controller) attachOffHost(iface string, vm state.VM) error {
	u := c.uplinks[iface]
	if u == nil {
		u = &uplink{name: iface, vms: map[string]*attachment{}}
		c.uplinks[iface] = u
	}
	policy, err := applyPatch(api.BuiltinPolicy(), attachAgain(iface, vm).Policy)
	if err != nil {
		return err
	}
	u.vms[vm.Name] = &attachment{req: attachAgain(iface, vm), kind: &countingKind{}, policy: policy, up: u}
	return c.saveState()
}

func vmOf(name, mac string) state.VM {
	return savedVM(api.AttachRequest{VM: name, MAC: mac, VhostUser: "/run/" + name}, api.BuiltinPolicy(), api.Addresses{})
}

func names(s state.State) (out []string) {
	for _, i := range s.Interfaces {
		for _, v := range i.VMs {
			out = append(out, i.Name+"/"+v.Name)
		}
	}
	return out
}

func TestASecondControllerOnTheSameStateIsErrHeld(t *testing.T) {
	dir := t.TempDir()
	offHost(t, dir)
	if _, err := openState(dir); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "another controller") || !strings.Contains(err.Error(), "--state") {
		t.Errorf("got %v", err)
	}
}

func TestAVMComesBackFromTheStateFileAsItWasAskedFor(t *testing.T) {
	for _, req := range []api.AttachRequest{
		{Iface: "eth1", VM: "a", MAC: "52:54:00:00:00:01", VLAN: 7, VhostUser: "/x", SocketMode: "0600", SocketOwner: "u:g", AllowSpoof: true, FixOffloads: true},
		{Iface: "eth1", VM: "b", MAC: "52:54:00:00:00:02", VhostUser: "/x", Connect: true, MTU: 1500},
		{Iface: "eth1", VM: "c", MAC: "52:54:00:00:00:03", Tap: "vnet0", Bypass: true},
	} {
		policy := api.BuiltinPolicy()
		policy.Profile, policy.HoldNS, policy.HoldAdaptive, policy.ExcludePorts = "rsc", 0, false, []uint16{22}
		policy.Isolate = req.VhostUser != ""
		kept := api.Addresses{MACs: []string{"52:54:00:00:00:09"}, IPs: []string{"10.0.0.5", "2001:db8::/64"}}
		req.MACs, req.IPs = &kept.MACs, &kept.IPs
		back := attachAgain("eth1", savedVM(req, policy, kept))
		if p, err := applyPatch(api.BuiltinPolicy(), back.Policy); err != nil || !reflect.DeepEqual(p, policy) {
			t.Errorf("%s: policy %+v, %v, want %+v", req.VM, p, err, policy)
		}
		back.Policy = api.PolicyPatch{}
		if !reflect.DeepEqual(back, req) {
			t.Errorf("%s: attached again by\n%+v\nwas asked for by\n%+v", req.VM, back, req)
		}
	}
}

// A crash while a controller restores its state must not lose the VMs still to come: whenever the state file is written, it
// holds all of them.
func TestACrashDuringTheRestoreLosesNoVM(t *testing.T) {
	dir := t.TempDir()
	all := []string{"eth1/a", "eth1/b", "eth1/c", "eth2/d"}
	first := offHost(t, dir)
	first.wait("eth1", vmOf("a", "52:54:00:00:00:01"), "")
	first.wait("eth1", vmOf("b", "52:54:00:00:00:02"), "")
	first.wait("eth1", vmOf("c", "52:54:00:00:00:03"), "")
	first.wait("eth2", vmOf("d", "52:54:00:00:00:04"), "")
	if err := first.saveState(); err != nil {
		t.Fatal(err)
	}
	first.state.Close()

	for crash := range all { // after so many attachments
		c := offHost(t, dir)
		saved, err := c.state.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range saved.Interfaces {
			for _, vm := range i.VMs {
				c.wait(i.Name, vm, "")
			}
		}
		done := 0
		for _, i := range saved.Interfaces {
			c.wake(i.Name, func(iface string, vm state.VM) error {
				if done > crash {
					return errors.New("crashed")
				}
				done++
				if vm.Name == "b" {
					return errors.New("the tap is gone") // it waits on, and is not lost either
				}
				return c.attachOffHost(iface, vm)
			})
		}
		c.state.Close()
		again := offHost(t, dir)
		got, err := again.state.Load()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, n := range names(got) {
			seen[n] = true
		}
		if len(names(got)) != len(all) || len(seen) != len(all) {
			t.Fatalf("crash after %d: the state has %v, want %v", crash+1, names(got), all)
		}
		again.state.Close()
	}
}

func TestAVMThatCannotBeAttachedWaitsWithItsCause(t *testing.T) {
	c := offHost(t, t.TempDir())
	c.wait("eth1", vmOf("a", "52:54:00:00:00:01"), "")
	c.wait("eth1", vmOf("b", "52:54:00:00:00:02"), "")
	c.wake("eth1", func(iface string, vm state.VM) error {
		if vm.Name == "a" {
			return errors.New("tap vnet3: no such device")
		}
		return c.attachOffHost(iface, vm)
	})
	list := c.waitingList("")
	if len(list) != 1 || list[0].VM != "a" || list[0].Iface != "eth1" || list[0].Cause != "tap vnet3: no such device" || list[0].Since.IsZero() {
		t.Fatalf("waiting: %+v", list)
	}
	// Of an interface whose VMs wait nobody means another one by the same name.
	for what, ask := range map[string]func() error{
		"VM a: no such VM is attached: it waits for eth1": func() error { _, err := c.GetPolicy("a"); return err },
		"VM b2: no such VM": func() error { _, err := c.Detach(api.DetachRequest{Iface: "eth1", VM: "b2"}); return err },
		"its VMs wait":      func() error { _, err := c.Flows("eth1", "", "", 0); return err },
	} {
		if what == "its VMs wait" { // and none is attached
			delete(c.uplinks, "eth1")
		}
		if err := ask(); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "did you mean eth1") {
			t.Errorf("%v, want %q", err, what)
		}
	}
	var resp api.DetachResponse
	if !c.detachWaiting(api.DetachRequest{Iface: "eth1", VM: "a"}, &resp) || len(c.waiting) != 0 {
		t.Errorf("detached %v, still waiting %v", resp.VMs, c.waiting)
	}
}

// A policy that the state file could not keep is not put in force; what was carried out already is told and saved later.
func TestAFullDiskNeverMakesADeedAnError(t *testing.T) {
	dir := t.TempDir()
	c := offHost(t, dir)
	if err := c.attachOffHost("eth1", vmOf("a", "52:54:00:00:00:01")); err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(dir, "state.json.new")
	if err := os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	off := false
	_, err := c.SetPolicy(api.PolicyRequest{VM: "a", Patch: api.PolicyPatch{Coalesce: &off}})
	if !errors.Is(err, state.ErrNotSaved) || !strings.Contains(err.Error(), "unchanged") {
		t.Errorf("policy set: %v, want ErrNotSaved and that nothing changed", err)
	}
	if r, err := c.GetPolicy("a"); err != nil || !r.Policy.Coalesce {
		t.Errorf("the policy is in force: %+v, %v", r, err)
	}
	delete(c.uplinks, "eth1")
	if w := c.saveInForce(); len(w) != 1 || !strings.Contains(w[0], "in force, but") || !reflect.DeepEqual(c.stateWarnings(), w) {
		t.Errorf("after a detach: %q; status says %q", w, c.stateWarnings())
	}
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	c.saveAgain()
	if got, err := c.state.Load(); err != nil || len(names(got)) != 0 || len(c.stateWarnings()) != 0 {
		t.Errorf("once there is room: %v, %v, warnings %q", names(got), err, c.stateWarnings())
	}
}

// What is undone leaves the list, what cannot be undone stays for the next run.
func TestTheUndoListFollowsTheHost(t *testing.T) {
	dir := t.TempDir()
	c := offHost(t, dir)
	todo := []state.Change{{
		Kind: state.Offload, Iface: "eth1", Link: "eth1", Feature: "large-receive-offload",
		Device: state.Device{Index: 7, Addr: "52:54:00:00:00:01", Boot: "b"},
	}}
	if err := c.record(todo); err != nil || todo[0].ID == 0 {
		t.Fatalf("recorded as %d, %v", todo[0].ID, err)
	}
	nothing := todo[0]
	back := c.state.Changes()[0]
	if !reflect.DeepEqual(back, nothing) {
		t.Errorf("read back %+v, was %+v", back, nothing)
	}
	if errs := c.putBack([]state.Change{nothing}); len(errs) != 0 || len(c.state.Changes()) != 0 {
		t.Errorf("errors %v, left %+v", errs, c.state.Changes())
	}
}

func TestARefusedStateFileIsLeftAloneByTheStop(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"{", `{"schema": 99}`, "\x00"} {
		name := filepath.Join(dir, "state.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := offHost(t, dir)
		if err := c.restore(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("state %q: %v, want an error that names the file", text, err)
		}
		if c.restored {
			t.Errorf("state %q would be written over by the stop", text)
		}
		c.state.Close()
	}
}

// An adaptive hold is kept beside a fixed one, which a version that knows no other takes; what such a version wrote is fixed.
func TestAdaptiveHoldsAreKeptBesideFixedOnes(t *testing.T) {
	for hold, want := range map[string]state.Policy{
		"adaptive": {HoldNS: 50_000, AdaptiveNS: 10_000_000}, "adaptive:20us": {HoldNS: 20_000, AdaptiveNS: 20_000},
		"300us": {HoldNS: 300_000}, "0s": {},
	} {
		p := api.BuiltinPolicy()
		d, adapts, err := api.ParseHold(hold)
		if err != nil {
			t.Fatal(err)
		}
		p.HoldNS, p.HoldAdaptive = d.Nanoseconds(), adapts
		saved := savedPolicy(p)
		if saved.HoldNS != want.HoldNS || saved.AdaptiveNS != want.AdaptiveNS {
			t.Errorf("%s: %+v", hold, saved)
		}
		if again := policyAgain(saved); again.Hold() != hold {
			t.Errorf("%s came back as %s", hold, again.Hold())
		}
	}
}
