package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// vanishing is an interface of the host that goes at the worst moment.
const vanishing = "up1"

// vanish removes it, in its namespace.
func vanish() error {
	l, err := netlink.LinkByName(vanishing)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// appear makes it.
func (r *rig) appear() {
	r.t.Helper()
	r.net.B.Do(r.t, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: vanishing}, PeerName: "peer1"}
		err := netlink.LinkAdd(pair)
		if err == nil {
			err = netdev.SetOffload("peer1", netdev.TxVLAN, false) // kernels before 6.8 do not show XDP the tag
		}
		if err == nil {
			err = netlink.LinkSetUp(pair)
		}
		return err
	})
}

// An interface that goes while an heir has everything, or between a crash and the next process, costs its own VMs their link, and no other VM
// notices. When one of its name is there, they are served again by their sockets.
func TestAnInterfaceThatGoesWhileHandsChange(t *testing.T) {
	for name, goes := range map[string]func(t *testing.T, r *rig){
		"an heir has everything": func(t *testing.T, r *rig) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), rogueEnv+"=takes an interface with it", rogueSocketEnv+"="+filepath.Join(r.dir, "ctl.sock"), rogueStateEnv+"="+filepath.Join(r.dir, "state"))
			cmd.Stderr = os.Stderr
			if err := r.net.B.NS.Start(cmd); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the controller may end it before it ends
			r.logs("this controller goes on")
		},
		"a crash": func(t *testing.T, r *rig) {
			was := r.worker()
			if err := syscall.Kill(was, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			r.net.B.Do(t, vanish)
			if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r.logs("gone on where the process before stood")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, netnstest.Options{NoIPv6: true})
			g := r.boot(stackguest.Config{Socket: r.attach("stays", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
			r.appear()
			socket := filepath.Join(r.dir, "goes.sock")
			r.must("attach", vanishing, "--vm", "goes", "--mac", macA, "--vhost-user", socket)
			r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)})
			r.replace() // what an heir keeps counts as well
			goes(t, r)
			r.eventually("its VM waits", func() error {
				if out, code := r.cli("status"); code != 0 {
					return errors.New(out)
				}
				if why := r.waits("goes"); !strings.Contains(why, "no such") && !strings.Contains(why, "not found") {
					return fmt.Errorf("waits: %q", why)
				}
				return nil
			})
			g.calm(t)
			netnstest.Bulk(t, r.net.A, g.side, 2<<20, false, time.Minute)
			r.appear()
			r.eventually("it is served again", func() error {
				if r.portOf("goes") == nil {
					return errors.New(r.waits("goes"))
				}
				return nil
			})
			r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)})
			r.crash() // and all of it is kept again
			g.calm(t)
			netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
			if r.portOf("goes") == nil {
				t.Errorf("after a crash it waits: %s", r.waits("goes"))
			}
		})
	}
}
