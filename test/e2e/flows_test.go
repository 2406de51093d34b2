package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
)

// pinned starts the rig's controller again with pins that outlive it.
func (r *rig) pinned() {
	r.t.Helper()
	r.stop()
	dir := filepath.Join(r.dir, "bpffs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		netnstest.Skip(r.t, "mounting a BPF filesystem: "+err.Error())
	}
	r.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	r.start()
}

// fleetMAC is the address of the i-th VM of a test with many.
func fleetMAC(i int) [6]byte { return [6]byte{0x52, 0x54, 0, 0, 1, byte(i)} }

func vmNamed(i int) string { return fmt.Sprintf("vm%d", i) }

func (r *rig) attachFleet(i int) {
	mac := fleetMAC(i)
	r.attach(vmNamed(i), fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]))
}

// flowTo sends one segment to a VM, from a port that names it.
func (r *rig) flowTo(i int) {
	r.net.A.Inject(r.t, pt.TCP{DstMAC: fleetMAC(i), SrcPort: uint16(1000 + i), Len: 10}.Frame())
}

// expectFlows waits until the flows are those of these VMs, packets each, every row under the name of its own VM.
func (r *rig) expectFlows(when string, packets uint64, vms ...int) {
	r.t.Helper()
	r.eventually(when, func() error {
		var got api.Flows
		r.json(&got, "flows", "--sort", "vm")
		if len(got.Flows) != len(vms) {
			return fmt.Errorf("%d flows, want those of %v: %+v", len(got.Flows), vms, got.Flows)
		}
		seen := map[string]api.Flow{}
		for _, f := range got.Flows {
			seen[f.VM] = f
		}
		for _, i := range vms {
			if f := seen[vmNamed(i)]; f.SrcPort != uint16(1000+i) || f.Packets != packets {
				return fmt.Errorf("%s is said to have the flow of port %d with %d packets, want %d with %d", vmNamed(i), f.SrcPort, f.Packets, 1000+i, packets)
			}
		}
		return nil
	})
}

// Whatever happens to the controller and to other VMs, a row of flows names the VM that it is of.
func TestEveryFlowNamesItsOwnVM(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.pinned()
	for _, i := range []int{3, 1, 4, 2} { // not in the order of a restart
		r.attachFleet(i)
		r.flowTo(i)
	}
	r.expectFlows("attached", 1, 1, 2, 3, 4)

	r.stop()
	r.start()
	r.expectFlows("after a restart", 1, 1, 2, 3, 4)
	r.kill()
	r.start()
	for i := 1; i <= 4; i++ {
		r.flowTo(i)
	}
	r.expectFlows("after a crash, counted on", 2, 1, 2, 3, 4)

	// A VM leaves, and another gets its index; then one of its name comes back.
	r.must("detach", r.net.B.Dev, "--vm", "vm1")
	r.attachFleet(5)
	r.expectFlows("a new VM has none", 2, 2, 3, 4)
	r.must("detach", r.net.B.Dev, "--vm", "vm2")
	r.attachFleet(2)
	r.expectFlows("nor has a new one of an old name", 2, 3, 4)
	r.must("detach", r.net.B.Dev)
	if _, err := os.Stat(filepath.Join(r.dir, "bpffs", "flows")); !os.IsNotExist(err) {
		t.Errorf("the last detach left the pin: %v", err)
	}
}
