package bpf

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/test/netnstest"
)

// copies are duplicates of a program's parts, as they would arrive in another process.
func copies(t *testing.T, p Parts) Parts {
	t.Helper()
	dup := func(fd int) int {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	out := Parts{Program: dup(p.Program), Link: -1, Mode: p.Mode, Object: p.Object, ReadsTag: p.ReadsTag, Maps: map[string]int{}}
	if p.Link >= 0 {
		out.Link = dup(p.Link)
	}
	for name, fd := range p.Maps {
		out.Maps[name] = dup(fd)
	}
	return out
}

func mustParts(t *testing.T, parts func() (Parts, error)) Parts {
	t.Helper()
	p, err := parts()
	if err != nil {
		t.Fatal(err)
	}
	return copies(t, p)
}

// An heir's program takes the place of the one before without a moment in which none is attached, and goes on with its maps: VMs,
// excluded ports and counts are there. What the one before closes afterwards takes nothing away.
func TestAnHeirsProgramTakesThePlace(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	for i := range 4 {
		native, same := i%2 == 0, i < 2
		n.B.Do(t, func() error {
			o := LoadOptions{Ifindex: n.B.Index, Queues: 1, Native: native}
			old, err := Load(o)
			if err != nil {
				return err
			}
			if err := old.Attach(native); err != nil {
				return err
			}
			key, id := PortKey{MAC: [6]byte{2, 0, 0, 0, 0, 9}}, meta.PortID(3, 1)
			if err := errors.Join(old.SetPort(key, PortValue{Port: id, Flags: FlagSteer}), old.SetExcluded(id, []uint16{443, 80})); err != nil {
				return err
			}
			before := attached(t, n.B)
			parts := mustParts(t, old.Parts)
			if !same {
				parts.Object = "another version's"
			}
			p, err := Adopt(o, parts, nil)
			if err != nil {
				return err
			}
			defer p.Close()
			if attached(t, n.B) != before {
				t.Error("it took the place before it was told to")
			}
			if err := p.TakePlace(); err != nil {
				return err
			}
			if now := attached(t, n.B); (now == before) != same || now != int(p.ID()) {
				t.Errorf("program %d is attached, %d was and %d should be", now, before, p.ID())
			}
			if err := old.Release(); err != nil {
				return err
			}
			if attached(t, n.B) != int(p.ID()) {
				t.Error("the one before took the program along")
			}
			var v PortValue
			if err := p.ports.Lookup(key, &v); err != nil || v.Port != id {
				t.Errorf("the VM: %v, %v", v, err)
			}
			if got := p.excludes[id]; !slices.Equal(got, []uint16{80, 443}) {
				t.Errorf("excluded ports: %v", got)
			}
			if err := p.SetExcluded(id, nil); err != nil {
				return err
			}
			if p.Mode() == "" || p.ReadsVLANTag() != (native && p.ReadsVLANTag()) {
				t.Errorf("mode %q", p.Mode())
			}
			return p.Detach()
		})
		if id := attached(t, n.B); id != 0 {
			t.Fatalf("program %d is left", id)
		}
	}
}

// A map that this version has otherwise is made anew, and counting goes on at what was counted.
func TestCountsOutliveTheirMapsLayout(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	o := LoadOptions{Ifindex: 1, Queues: 1}
	old, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	parts := mustParts(t, old.Parts)
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	unix.Close(parts.Maps[RscMapOutcomes])
	parts.Maps[RscMapOutcomes], _ = unix.Dup(other.FD())
	p, err := Adopt(o, parts, map[string]uint64{"redirect": 7, "pass_host": 5, "of another version": 3})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	got, err := p.Outcomes()
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(got, func(_ string, n uint64) bool { return n == 0 })
	if !maps.Equal(got, map[string]uint64{"redirect": 7, "pass_host": 5}) {
		t.Error(got)
	}
}

// Parts that are not what they should be are refused, and closed.
func TestWrongPartsAreRefused(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	o := LoadOptions{Ifindex: 1, Queues: 1}
	old, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for name, spoil := range map[string]func(p *Parts){
		"a link that is an eventfd": func(p *Parts) { p.Link, _ = unix.Eventfd(0, unix.EFD_CLOEXEC) },
		"a map that is an eventfd": func(p *Parts) {
			unix.Close(p.Maps[RscMapPorts])
			p.Maps[RscMapPorts], _ = unix.Eventfd(0, unix.EFD_CLOEXEC)
		},
		"a link that is a map": func(p *Parts) { p.Link, _ = unix.Dup(p.Maps[RscMapPorts]) },
	} {
		parts := mustParts(t, old.Parts)
		spoil(&parts)
		all := append(slices.Collect(maps.Values(parts.Maps)), parts.Link)
		if _, err := Adopt(o, parts, nil); !errors.Is(err, ErrParts) {
			t.Errorf("%s: %v", name, err)
		}
		for _, fd := range all {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fd >= 0 && err == nil {
				t.Errorf("%s: descriptor %d is open", name, fd)
			}
		}
	}
}

// A tap's program changes hands likewise, by TCX and by clsact, and counts on.
func TestATapsProgramChangesHands(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.TAP)
	for _, mode := range []string{ModeTCX, ModeClsact} {
		t.Run(mode, func(t *testing.T) {
			v := openVMTap(t)
			old := v.load(t)
			v.attachAs(t, old, mode)
			v.do(t, func() error {
				counts, err := old.Outcomes()
				if err != nil {
					return err
				}
				parts := mustParts(t, old.Parts)
				p, err := AdoptTap(TapOptions{Ifindex: v.index, MAC: peerMAC}, parts, counts)
				if err != nil {
					return err
				}
				defer p.Close()
				if err := old.Release(); err != nil {
					return err
				}
				if err := p.TakePlace(); err != nil {
					return err
				}
				if !tapHook.hangs(v.index) {
					t.Error("no program is on the tap")
				}
				if got := p.Mode(); mode == ModeTCX && got != mode {
					t.Errorf("mode %s", got)
				}
				return nil
			})
		})
	}
}
