package netdev

import (
	"fmt"
	"path"
)

// Names of the offloads that matter to us, as `ethtool -K` knows them. Any kernel feature name works as well.
const (
	RxVLAN     = "rx-vlan-offload"       // the NIC takes the VLAN tag out of the frame, where XDP does not see it
	TxVLAN     = "tx-vlan-offload"       // the tag is handed down beside the frame
	TxChecksum = "tx-checksumming"       // frames are handed down with partial checksums
	LRO        = "large-receive-offload" // the NIC merges: frames larger than the MTU
	GROHW      = "rx-gro-hw"
)

// Change is a change of offload bits, enough to undo it: the kernel's feature names with the state asked for before.
// It can be stored as JSON and undone by another process.
type Change struct {
	Feature string          `json:"feature"` // as it was asked for
	Was     map[string]bool `json:"was"`     // empty: nothing had to change
}

// SetOffload switches an offload. See Handle.ChangeOffload, which can be undone exactly.
func SetOffload(name, feature string, on bool) error {
	return With(func(h *Handle) error {
		_, err := h.ChangeOffload(name, feature, on)
		return err
	})
}

// Offload tells whether an offload is active, by its `ethtool -K` name (long or short) or its kernel feature name. A
// name that stands for several kernel features is on when any of them is, and fixed when none of them can change.
func (h *Handle) Offload(name, feature string) (on, fixed bool, err error) {
	bits, _, err := h.features(name, feature)
	if err != nil {
		return false, false, err
	}
	fixed = true
	for _, b := range bits {
		on = on || b.active
		fixed = fixed && b.fixed
	}
	return on, fixed, nil
}

// PlanOffload returns what ChangeOffload would return, and changes nothing.
func (h *Handle) PlanOffload(name, feature string, on bool) (Change, error) {
	c, _, _, _, err := h.planOffload(name, feature, on)
	return c, err
}

// planOffload finds the bits that have to change: what undoes it, what is asked for by bit, how many bits the device has, and how
// many of the feature's can change.
func (h *Handle) planOffload(name, feature string, on bool) (c Change, want map[int]bool, n, changeable int, err error) {
	c = Change{Feature: feature}
	bits, n, err := h.features(name, feature)
	if err != nil {
		return c, nil, 0, 0, err
	}
	want = map[int]bool{}
	for _, b := range bits {
		if b.fixed {
			continue
		}
		changeable++
		if b.active != on || b.requested != on {
			if c.Was == nil {
				c.Was = map[string]bool{}
			}
			c.Was[b.name] = b.requested
			want[b.bit] = on
		}
	}
	return c, want, n, changeable, nil
}

// ChangeOffload switches an offload and checks that it happened. What it returns undoes it, also when err is not nil:
// part of the bits may have changed. Bits that are fixed are left alone; if an active one is among them, or nothing
// could change, the error is ErrFixed.
func (h *Handle) ChangeOffload(name, feature string, on bool) (Change, error) {
	c, want, n, changeable, err := h.planOffload(name, feature, on)
	if err != nil {
		return c, err
	}
	if len(want) > 0 {
		if err := h.eth.setFeatures(name, n, want); err != nil {
			return c, fmt.Errorf("interface: %s: set %s: %w", name, feature, linkErrno(err))
		}
	}
	return c, h.verify(name, feature, on, changeable)
}

// verify reads an offload again after a change: the kernel may drop what depends on something else.
func (h *Handle) verify(name, feature string, on bool, changeable int) error {
	now, fixed, err := h.Offload(name, feature)
	switch {
	case err != nil:
		return err
	case now == on:
		return nil
	case fixed || changeable == 0:
		return fmt.Errorf("interface: %s: set %s: %w", name, feature, ErrFixed)
	}
	return fmt.Errorf("interface: %s: set %s: %w", name, feature, ErrRefused)
}

// Offloads is what puts all offloads of an interface back to what is asked for now, whatever has been changed until then.
func (h *Handle) Offloads(name string) (Change, error) {
	c := Change{Feature: "*", Was: map[string]bool{}}
	bits, _, err := h.features(name, c.Feature)
	for _, b := range bits {
		c.Was[b.name] = b.requested
	}
	return c, err
}

// UndoOffload puts back what ChangeOffload changed. Features that the interface no longer has are passed over.
func (h *Handle) UndoOffload(name string, c Change) error {
	if len(c.Was) == 0 {
		return nil
	}
	bits, n, err := h.features(name, "*")
	if err != nil {
		return err
	}
	want := map[int]bool{}
	for _, b := range bits {
		if was, ok := c.Was[b.name]; ok && b.requested != was && !b.fixed {
			want[b.bit] = was
		}
	}
	if len(want) == 0 {
		return nil
	}
	if err := h.eth.setFeatures(name, n, want); err != nil {
		return fmt.Errorf("interface: %s: restore %s: %w", name, c.Feature, linkErrno(err))
	}
	return nil
}

// featureBit is one kernel feature of one interface. fixed is what `ethtool -k` prints as [fixed].
type featureBit struct {
	bit                      int
	name                     string
	active, requested, fixed bool
}

// features returns the bits that an offload's name stands for, and how many bits there are in all.
func (h *Handle) features(name, feature string) ([]featureBit, int, error) {
	names, err := h.eth.featureNames(name)
	if err != nil {
		return nil, 0, fmt.Errorf("interface: %s: features: %w", name, linkErrno(err))
	}
	state, err := h.eth.features(name, len(names))
	if err != nil {
		return nil, 0, fmt.Errorf("interface: %s: features: %w", name, linkErrno(err))
	}
	pattern := featurePattern(feature)
	var bits []featureBit
	for i, n := range names {
		if ok, err := path.Match(pattern, n); err != nil || !ok || n == "" {
			continue
		}
		w, m := i/32*4, uint32(1)<<(i%32)
		available, never := word(state, w)&m != 0, word(state, w+3)&m != 0
		bits = append(bits, featureBit{
			bit: i, name: n,
			requested: word(state, w+1)&m != 0, active: word(state, w+2)&m != 0,
			fixed: !available || never,
		})
	}
	if len(bits) == 0 {
		return nil, 0, fmt.Errorf("interface: %s: %q: %w", name, feature, ErrNoFeature)
	}
	return bits, len(names), nil
}

// featurePattern turns ethtool's names of old into patterns over the kernel's, as ethtool.c's off_flag_def does.
func featurePattern(feature string) string {
	switch feature {
	case "rx", "rx-checksumming":
		return "rx-checksum"
	case "tx", TxChecksum:
		return "tx-checksum-*"
	case "sg", "scatter-gather":
		return "tx-scatter-gather*"
	case "tso", "tcp-segmentation-offload":
		return "tx-tcp*-segmentation"
	case "gso", "generic-segmentation-offload":
		return "tx-generic-segmentation"
	case "gro", "generic-receive-offload":
		return "rx-gro"
	case "lro", LRO:
		return "rx-lro"
	case "rxvlan", RxVLAN:
		return "rx-vlan-hw-parse"
	case "txvlan", TxVLAN:
		return "tx-vlan-hw-insert"
	case "ntuple", "ntuple-filters":
		return "rx-ntuple-filter"
	case "rxhash", "receive-hashing":
		return "rx-hashing"
	}
	return feature
}

func linkErrno(err error) error {
	if isNoDevice(err) {
		return ErrNoDevice
	}
	return err
}
