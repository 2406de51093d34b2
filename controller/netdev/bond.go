package netdev

import (
	"fmt"
	"slices"
	"strings"
)

// Modes of bonds that are attached, as the kernel names them.
const (
	ActiveBackup = "active-backup"
	BalanceXOR   = "balance-xor"
	LACP         = "802.3ad"
)

// bondModes are the kernel's names by number (include/uapi/linux/if_bonding.h, BOND_MODE_*).
var bondModes = [...]string{"balance-rr", ActiveBackup, BalanceXOR, "broadcast", LACP, "balance-tlb", "balance-alb"}

// servedModes are those in which what comes in by a member is the bond's, and what goes out may go by any: balance-rr changes the order of
// a flow's segments, broadcast doubles them, and balance-tlb and balance-alb tell each peer another address of the host's.
var servedModes = []string{ActiveBackup, BalanceXOR, LACP}

// Bond is what is true of a bond at one moment.
type Bond struct {
	Mode    string
	Members []Member // by name
}

// Member is an interface that belongs to a bond.
type Member struct {
	Name   string
	Index  int
	Link   bool // the bond takes its link for up
	Active bool // the bond takes what comes in by it; false: a backup, whose frames it drops
}

// Find returns the member of that index, nil when there is none.
func (b *Bond) Find(index int) *Member {
	for i := range b.Members {
		if b.Members[i].Index == index {
			return &b.Members[i]
		}
	}
	return nil
}

// Served tells whether VMs can be attached to a bond of that mode.
func (b *Bond) Served() bool { return slices.Contains(servedModes, b.Mode) }

// BondOf is Handle.BondOf in the calling thread's namespace.
func BondOf(index int) (b *Bond, err error) {
	err = With(func(h *Handle) error {
		b, err = h.BondOf(index)
		return err
	})
	return b, err
}

// BondOf returns what is true of the bond with that index; nil when the interface is no bond. ErrNoDevice when there is none.
func (h *Handle) BondOf(index int) (*Bond, error) {
	a, err := h.linkAttrs(index)
	if err != nil {
		return nil, err
	}
	l := parseLink(index, 0, 0, a)
	if l.kind != "bond" {
		return nil, nil
	}
	all, err := h.linksOf(index)
	if err != nil {
		return nil, err
	}
	return all.bond(l), nil
}

func (s linkSet) bond(l linkInfo) *Bond {
	b := &Bond{Mode: l.modeName()}
	for _, m := range s.under(l.index) {
		b.Members = append(b.Members, Member{Name: m.name, Index: m.index, Link: m.miiUp, Active: !m.backup || l.allActive})
	}
	return b
}

func (l *linkInfo) modeName() string {
	if int(l.mode) < len(bondModes) {
		return bondModes[l.mode]
	}
	return fmt.Sprintf("of number %d", l.mode)
}

// refusedBond says why a bond is no uplink, "" when its members can be.
func (s linkSet) refusedBond(l linkInfo) string {
	members := s.under(l.index)
	switch {
	case !slices.Contains(servedModes, l.modeName()):
		return fmt.Sprintf("its mode is %s, and VMs can be attached to bonds of %s", l.modeName(), strings.Join(servedModes, ", "))
	case len(members) == 0:
		return "the bond has no members, by which its frames would come in"
	}
	for _, m := range members {
		if why := s.refusedItself(m); why != "" {
			return fmt.Sprintf("its member %s cannot be served: %s", m.name, why)
		}
	}
	return s.refusedMember(l)
}
