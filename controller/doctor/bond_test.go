package doctor

import (
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
)

// A bond is judged by its own link, and its members by what AF_XDP needs of them; that they belong to it is no finding.
func TestABondIsJudgedThroughItsMembers(t *testing.T) {
	f := well()
	member := *eth(f)
	member.Of, member.Master = "bond0", "bond0"
	idle := member
	idle.Name, idle.Running = "eth2", false
	bond := Interface{Facts: netdev.Facts{Name: "bond0", Kind: "bond", Driver: "bonding", Up: true, Running: true}, Bond: &netdev.Bond{Mode: netdev.ActiveBackup}}
	f.Interfaces = []Interface{bond, member, idle}
	found := bad(Examine(f))
	if len(found) != 1 || found[0].ID != "iface.link" || found[0].Subject != "eth2" {
		t.Errorf("%+v", found)
	}
	said := ""
	for _, one := range Examine(f) {
		said += one.Subject + " " + one.What + "\n"
	}
	for _, want := range []string{"bond0 it is a bond of mode active-backup", member.Name + " bond0 is attached through it"} {
		if !strings.Contains(said, want) {
			t.Errorf("not said: %q in\n%s", want, said)
		}
	}
}
