package controller

import (
	"fmt"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// kind is one way to connect a VM, and all that differs between the ways: a vhost-user socket, the VM's own tap. Each VM has a
// value of its own. A new kind is a type that implements this, in a file of its own, and a line in builtinKinds; what an
// operator says of it are fields of api.AttachRequest, and what a restart needs of it are fields of state.VM.
//
// The controller calls it with its lock held. The attachment's own lock, which guards the policy and what a kind's own
// goroutines touch, is held where a method says so.
type kind interface {
	// plan looks at the host and changes nothing. changes and warnings are what an operator is told before anything is done.
	// With again the VM was attached before, and may be elsewhere by now.
	plan(c *Controller, a *attachment, uplink *netdev.Facts, again bool) (changes, warnings []string, err error)
	// open connects the VM to every worker of a.up and steers its frames to them. close follows when it fails.
	open(a *attachment) error
	// close takes all of that back. Held frames are delivered or counted. It is safe on what open left half done.
	close(a *attachment) error
	// pack ends the way for this process without anybody noticing, and puts what another one goes on with into p and vm. The
	// workers take nothing meanwhile.
	pack(a *attachment, p *parcel.Parcel, vm *packedVM) error
	// keep puts into b and vm what another process goes on with should this one die: what pack would, without an end to anything.
	keep(a *attachment, b bag, vm *packedVM) error
	// prepare is plan without a look at what only plan may find: what a VM is that was attached already.
	prepare(c *Controller, uplink *netdev.Facts)
	// show puts into p and vm what pack would, of a VM that goes on, for build in another process while it does.
	show(a *attachment, p *parcel.Parcel, vm *packedVM) error
	// build is open for what pack or show has kept, one step before anything is touched that the process before uses as well. errMoved:
	// the host is why it cannot be. forsake takes back what there is, also after an error.
	build(a *attachment, p *parcel.Parcel, vm *packedVM) error
	// fits tells whether what was built from show is what pack has kept since. Then takeOver goes on with the latter.
	fits(vm *packedVM) bool
	// takeOver is that step, once the process before has stopped.
	takeOver(a *attachment) error
	// forsake takes back what build and a takeOver that failed have done, and leaves the VM to the process before.
	forsake(a *attachment) error
	// enforce puts a policy in force on every worker, and delivers what was held under the old one. a.mu is held, a.running true.
	enforce(a *attachment, p api.Policy) error
	// uplinkMTU says that the uplink has another MTU, in bytes behind the Ethernet header.
	uplinkMTU(mtu int)
	// check looks, once a second and when something has changed, whether all is as it was, and follows what can be followed. An
	// error means that the VM cannot be served: it is taken off and waits.
	check(a *attachment, look *look) error

	features() virtio.Features // what the guest takes now
	bridged() bool             // the kernel's bridge brings the VM what is not steered here
	claim() string             // what no other VM may have, in words; "": nothing
	watched() int              // the ifindex whose changes concern the VM alone; 0: none
	restless() time.Duration   // it wants a look so often; 0: as often as all others
	feed() api.Feed
	to() string // where the VM is: a socket, a tap
	// describe adds what the kind knows to p.Port and the counters beside it.
	describe(a *attachment, vm *report.VM) error
}

// kindOf is how a kind is recognised and made. make checks all of a request that needs no look at the host.
type kindOf struct {
	// sweep takes off the host what a controller that died left there for a VM of this kind. nil: nothing can be left.
	sweep  func(vm *state.VM) error
	wanted func(req *api.AttachRequest) bool
	make   func(req *api.AttachRequest) (kind, error)
}

// builtinKinds are the ways that the product has.
func builtinKinds() []kindOf {
	return []kindOf{
		{wanted: wantsUser, make: newUserKind},
		{wanted: wantsTap, make: newTapKind, sweep: sweepTap},
	}
}

// kindFor makes the one kind that a request asks for.
func (c *Controller) kindFor(req *api.AttachRequest) (kind, error) {
	var found *kindOf
	for i := range c.kinds {
		if !c.kinds[i].wanted(req) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("feed: %w: give either --vhost-user or --tap", ErrUsage)
		}
		found = &c.kinds[i]
	}
	if found == nil {
		return nil, fmt.Errorf("feed: %w: give a socket with --vhost-user, or the VM's tap with --tap", ErrUsage)
	}
	return found.make(req)
}

// look is one look at everything that is attached. It asks by the controller's own sockets, and what several VMs need of the host it
// reads once.
type look struct {
	reader *netdev.RuleReader
	read   bool
	rules  *netdev.Rules
	err    error
	host   *netdev.Kept
	doubts bool // an answer may be the sockets' fault
}

// lookAt runs fn with a look of its own.
func (c *Controller) lookAt(fn func(l *look)) {
	l := &look{reader: c.rules, host: &c.host}
	defer func() {
		if l.doubts {
			c.host.Renew()
		}
	}()
	fn(l)
}

// handle is the look's way to ask the kernel, until its end.
func (l *look) handle() (h *netdev.Handle, err error) { return l.host.Handle() }

// doubt is called where an answer was not what it should be: the next look asks by new sockets, as the first one did.
func (l *look) doubt() { l.doubts = true }

// hostRules are the rules of the host that frames may meet. Only who needs them pays for reading them.
func (l *look) hostRules() (*netdev.Rules, error) {
	if !l.read {
		l.read = true
		l.rules, l.err = l.reader.Read()
	}
	return l.rules, l.err
}
