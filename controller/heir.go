package controller

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/metrics"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// Replace takes over from the controller that listens on opt.Socket, while it lives: all of its uplinks, VMs and connections, without
// a VM noticing. When it returns without an error that controller ends, and Run goes on with them. With an error that controller goes
// on as if nothing had been asked. api.ErrNoController: there is none.
func Replace(opt Options) (c *Controller, err error) {
	c = newController(opt)
	if c.watcher, err = netdev.NewWatcher(); err != nil { // what takes time comes before anything stops
		return nil, err
	}
	conn, err := askFor(opt)
	if err != nil {
		c.watcher.Close()
		return nil, err
	}
	defer conn.Close()
	err = c.makeReady(conn)
	if err == nil {
		err = c.receive(conn)
	}
	if err != nil {
		c.leavePlaces()
		_ = json.NewEncoder(conn).Encode(api.ReplaceAnswer{Error: err.Error()})
		return nil, fmt.Errorf("replace: %w: the controller before goes on", err)
	}
	if err := json.NewEncoder(conn).Encode(api.ReplaceAnswer{Running: true, PID: os.Getpid(), MovedNS: c.movedAt}); err != nil {
		return nil, fmt.Errorf("replace: the controller before has gone on: %w", err) // and it kills us
	}
	awaitEnd(conn)
	c.inUse()
	return c, nil
}

// awaitEnd waits until the process before, at the other end of conn, has ended: should this one die before that, two would go on, and until
// that the one before may kill this one, which must not have said yet that it is in use. It ends as soon as it has told the service manager.
func awaitEnd(conn *net.UnixConn) {
	var gone [1]byte
	_ = conn.SetReadDeadline(time.Now().Add(endsWithin))
	_, _ = conn.Read(gone[:])
}

// askFor asks the controller at the socket for its parcel, which follows on the connection.
func askFor(opt Options) (*net.UnixConn, error) {
	nc, err := api.Dial(opt.Socket)
	if err != nil {
		return nil, err
	}
	conn := nc.(*net.UnixConn)
	body, err := json.Marshal(api.ReplaceRequest{Version: opt.Version, Parcel: parcel.Version, State: opt.State, BPFFS: opt.BPFFS, Service: opt.Service, NetNS: ownNetNS()})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(2 * readyWithin))
		var req *http.Request
		if req, err = http.NewRequest(http.MethodPost, "http://rscctl/v1/replace", bytes.NewReader(body)); err == nil {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", api.ReplaceProtocol)
			err = req.Write(conn)
		}
	}
	if err == nil {
		err = upgraded(conn)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// upgraded reads the answer's head and not a byte more: descriptors come with the bytes behind it.
func upgraded(conn *net.UnixConn) error {
	resp, err := http.ReadResponse(bufio.NewReader(singly{conn}), nil)
	if err != nil {
		return fmt.Errorf("replace: answer of the controller: %w", err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	defer resp.Body.Close()
	return api.ReadError(resp)
}

// singly reads byte by byte.
type singly struct{ *net.UnixConn }

func (s singly) Read(b []byte) (int, error) { return s.UnixConn.Read(b[:min(1, len(b))]) }

// makeReady builds all that can be built while the controller before goes on.
func (c *Controller) makeReady(conn *net.UnixConn) error {
	p, s, err := receivePacked(conn)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := c.flowRows(); err != nil {
		return err
	}
	if err := state.Check(c.opt.State); err != nil {
		return err
	}
	c.mu.Lock()
	err = c.rehearse(p, &s)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(api.ReplaceAnswer{Ready: true})
}

// receive takes the parcel and goes on with what is in it.
func (c *Controller) receive(conn *net.UnixConn) error {
	p, s, err := receivePacked(conn)
	if err != nil {
		return err
	}
	defer p.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.goOn(p, &s, allOrNothing, func() {
		if s.Hears { // a failure shows with the last word
			_ = json.NewEncoder(conn).Encode(api.ReplaceAnswer{Moving: true, MovedNS: c.movedAt})
		}
	})
}

// receivePacked reads a parcel, which is the caller's to close, and its state.
func receivePacked(conn *net.UnixConn) (p *parcel.Parcel, s packed, err error) {
	if err := refusal(conn); err != nil {
		return nil, s, err
	}
	if p, err = parcel.Receive(conn); err != nil {
		return nil, s, err
	}
	if s, err = readPacked(p); err != nil {
		p.Close()
		return nil, s, err
	}
	return p, s, nil
}

// refusal is why the controller before sends no parcel: it sends a ReplaceAnswer then. nil: a parcel comes, or nothing that can be read.
func refusal(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var first [1]byte
	_ = raw.Read(func(fd uintptr) bool { // what goes wrong, Receive meets as well
		_, _, err := unix.Recvfrom(int(fd), first[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if first[0] != '{' {
		return nil
	}
	var a api.ReplaceAnswer
	if err := json.NewDecoder(io.LimitReader(conn, 1<<16)).Decode(&a); err != nil || a.Error == "" {
		return fmt.Errorf("%w: an answer where a parcel belongs", parcel.ErrDamaged)
	}
	return errors.New(strings.TrimPrefix(a.Error, "replace: "))
}

// goOn takes what is in a parcel. What guests wait for comes first; moving is called behind it. The caller holds mu.
func (c *Controller) goOn(p *parcel.Parcel, s *packed, how unpacking, moving func()) error {
	if !c.ahead.placesFit(s) {
		programs := c.ahead.takePrograms()
		c.dropAhead()
		c.leaveAhead()
		if err := c.takePlaces(p, s); err != nil {
			return err
		}
		c.ahead = &ahead{programs: programs}
	}
	same := c.survivor != nil && c.opt.Store.Path() == s.Store
	if same { // it has all this already
		c.survivor.inherit(s.Kept)
	}
	c.tags = s.Tags
	if err := c.unpack(p, s, how); err != nil {
		return err
	}
	moving()
	err := c.takeState(p, s)
	if err == nil {
		c.dropAhead()
		c.remember()
		if same {
			err = c.dropStrays(s.Kept)
		}
	}
	if err != nil {
		return errors.Join(err, c.abandonAll())
	}
	return nil
}

// takePlaces goes on with the sockets and the flow maps, and begins to keep, which all may be done while the controller before works. The
// caller holds mu.
func (c *Controller) takePlaces(p *parcel.Parcel, s *packed) error {
	if err := c.survive(s.Process + 1); err != nil {
		return err
	}
	gid, err := socketGroup(c.opt.Socket, c.opt.SocketGroup)
	if err != nil {
		return err
	}
	fd, err := p.Take(s.Control.FD, parcel.Listener)
	if err != nil {
		return err
	}
	if c.listener, err = unixsock.Adopt(controlConfig(c.opt.Socket, gid), s.Control.ID, fd); err != nil {
		return err
	}
	if is, ok := c.listener.Group(); ok && gid >= 0 && int(is) != gid {
		c.log.Warn("the control socket keeps its group until the next start", "group", is, "socket_group", c.opt.SocketGroup)
	}
	if err := c.takeScrapes(p, s); err != nil {
		return err
	}
	return c.takeFlows(p, s)
}

// takeState goes on with the state directory. The caller holds mu.
func (c *Controller) takeState(p *parcel.Parcel, s *packed) error {
	fd, err := p.Take(s.Lock, parcel.Memory)
	if err != nil {
		return err
	}
	if c.state, err = state.Adopt(c.opt.State, fd); err != nil {
		return err
	}
	saved, err := c.state.Load()
	if err != nil {
		return err
	}
	if c.flows == nil { // none yet
		if err := c.openFlows(); err != nil {
			return err
		}
	}
	c.restored, c.started = true, s.Started
	if c.opt.Service && c.opt.Watchdog == 0 {
		c.opt.Watchdog = s.Watchdog
	}
	c.restoreDefaults(saved.DefaultPolicy)
	c.ownChanges(s)
	c.waitForTheRest(&saved, s)
	return nil
}

// takeScrapes goes on with the address of the metrics, if it is still the one that is wanted.
func (c *Controller) takeScrapes(p *parcel.Parcel, s *packed) (err error) {
	switch {
	case c.opt.Metrics == "":
		return nil
	case s.Scrapes == "" || s.Metrics != c.opt.Metrics:
		c.scrapes, err = metrics.Listen(c.opt.Metrics)
		return err
	}
	fd, err := p.Take(s.Scrapes, parcel.TCPListener)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "metrics")
	defer f.Close() // FileListener works on a copy
	c.scrapes, err = net.FileListener(f)
	return err
}

func (c *Controller) takeFlows(p *parcel.Parcel, s *packed) error {
	if s.Pins != "" {
		fd, err := p.Take(s.Pins, parcel.Folder)
		if err != nil {
			return err
		}
		c.pinsLock = os.NewFile(uintptr(fd), c.opt.BPFFS)
		return c.loadFlows()
	}
	if s.Flows == "" {
		return nil
	}
	fd, err := p.Take(s.Flows, parcel.BPFMap)
	if err != nil {
		return err
	}
	rows, err := c.flowRows()
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	c.flows, _, err = bpf.AdoptFlows(fd, rows)
	return err
}

// waitForTheRest puts the VMs that the state names and the parcel has not on the list of those that wait. The caller holds mu.
func (c *Controller) waitForTheRest(saved *state.State, s *packed) {
	here := map[string]bool{}
	for _, u := range s.Uplinks {
		for _, vm := range u.VMs {
			here[vm.VM.Name] = true
		}
	}
	for _, i := range saved.Interfaces {
		for _, vm := range i.VMs {
			if !here[vm.Name] {
				c.wait(i.Name, vm, "it waited when this controller took over")
			}
		}
	}
}

// leavePlaces lets go of what was taken, and leaves it to the controller before.
func (c *Controller) leavePlaces() {
	c.dropAhead()
	if c.watcher != nil {
		c.watcher.Close()
	}
	c.leaveAhead()
	if c.state != nil {
		_ = c.state.Close()
	}
}

// leaveAhead lets go of what takePlaces took.
func (c *Controller) leaveAhead() {
	if c.scrapes != nil {
		_ = c.scrapes.Close()
	}
	if c.listener != nil {
		_ = c.listener.Leave()
	}
	if c.flows != nil {
		_ = c.flows.Close()
	}
	if c.pinsLock != nil {
		_ = c.pinsLock.Close() // the other's
	}
	if c.survivor != nil {
		_ = c.survivor.note.Close()
	}
	c.scrapes, c.listener, c.flows, c.pinsLock, c.survivor = nil, nil, nil, nil, nil
}
