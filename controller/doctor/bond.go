package doctor

import (
	"slices"

	"github.com/rscctl/rscctl/controller/netdev"
)

// lookAtAll gathers the facts of interfaces. Where a bond can be attached through some of them, it and all of its members stand in
// their place.
func (f *Facts) lookAtAll(h *netdev.Handle, names []string) error {
	for _, name := range names {
		i, err := f.look(h, name)
		if err != nil {
			return err
		}
		if i.NotUplink != nil && i.Master != "" && !f.Named {
			if bond, err := f.look(h, i.Master); err == nil && bond.Bond != nil && bond.NotUplink == nil {
				i = bond
			}
		}
		if slices.ContainsFunc(f.Interfaces, func(known Interface) bool { return known.Name == i.Name }) {
			continue
		}
		f.Interfaces = append(f.Interfaces, i)
		if i.Bond == nil || i.NotUplink != nil {
			continue
		}
		for _, m := range i.Bond.Members {
			member, err := f.look(h, m.Name)
			if err != nil {
				return err
			}
			member.NotUplink, member.Of = nil, i.Name
			f.Interfaces = append(f.Interfaces, member)
		}
	}
	return nil
}
