package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/parcel"
)

const (
	readyWithin = 10 * time.Second                 // for the heir's preparations, during which nothing stops
	takesWithin = 2 * time.Second                  // from the parcel to the heir's word that frames move again
	keepsWithin = readyWithin                      // from there to its word that it runs: it has written what outlives it; guests do not wait
	endsWithin  = fdstore.MainWithin + takesWithin // from that word to the end of the process before, which tells the service manager
	diesWithin  = 5 * time.Second                  // of an heir that was killed
	leaves      = 100 * time.Millisecond           // an heir that has said that it cannot take over: it ends by itself, and says why where it was started
)

// handOver answers POST /v1/replace: it gives everything to the process that asks, or goes on. Only root may ask.
func (c *Controller) handOver(w http.ResponseWriter, r *http.Request) {
	var req api.ReplaceRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil { // of a newer version, it may have more to say
		refuse(w, fmt.Errorf("request: %w: %w", ErrUsage, err))
		return
	}
	if err := c.checkReplace(req, int(askedBy(r).pid)); err != nil {
		refuse(w, err)
		return
	}
	conn, err := upgrade(w)
	if err != nil {
		refuse(w, err)
		return
	}
	defer conn.Close()
	heir, err := openHeir(conn)
	if err != nil {
		c.log.Error("not replaced: this controller goes on", "err", err)
		_ = json.NewEncoder(conn).Encode(api.ReplaceAnswer{Error: err.Error()})
		return
	}
	defer heir.close()
	err = c.announce(heir)
	if err == nil {
		c.hush("another controller takes over: start it again")
	}
	c.mu.Lock()
	delete(c.shown, heir)
	if heir.withdrawn {
		err = errWithdrawn
	}
	if err != nil {
		c.mu.Unlock()
		_ = heir.kill()
		c.log.Error("not replaced: this controller goes on", "by", heir.pid, "err", err)
		return
	}
	defer func() {
		if r := recover(); r != nil { // with everything packed: a crash is what the next process mends
			go panic(r)
			select {}
		}
	}()
	if c.giveTo(heir) {
		close(c.replaced) // with mu held: what this process still has is another's
		select {}
	}
	c.mu.Unlock()
}

var errWithdrawn = errors.New("an interface was given back meanwhile: replace it again")

// withdraw ends an heir that has the first parcel, because an interface is given back: the heir has its sockets and its program, and while it
// has them nobody can attach the interface again. The caller holds mu.
func (c *Controller) withdraw() {
	for h := range c.shown {
		h.withdrawn = true
		if err := h.kill(); err != nil {
			c.log.Error("hand over", "err", err)
		}
	}
	clear(c.shown)
}

// checkReplace says why an heir, a process that asks, cannot be one, before anything is done for it.
func (c *Controller) checkReplace(req api.ReplaceRequest, pid int) error {
	switch {
	case req.Parcel < parcel.Version:
		return fmt.Errorf("replace: rscctl %s reads parcels up to form %d, and this one (%s) writes %d: %w: for a downgrade stop this one and start the other",
			req.Version, req.Parcel, c.opt.Version, parcel.Version, ErrUsage)
	case req.State != c.opt.State || req.BPFFS != c.opt.BPFFS:
		return fmt.Errorf("replace: the controller at this socket has --state %s --bpffs %s: %w: give the same", c.opt.State, c.opt.BPFFS, ErrUsage)
	case req.NetNS != "" && req.NetNS != ownNetNS(): // where interfaces of the same numbers are others
		return fmt.Errorf("replace: the controller at this socket is in another network namespace: %w: start this one there ('nsenter --net=/proc/%d/ns/net rscctl run --replace ...')", ErrUsage, os.Getpid())
	case c.opt.Service && !req.Service:
		return fmt.Errorf("replace: this controller is run by systemd, which would start a rival of yours: %w: use 'systemctl reload rscctl'", ErrUsage)
	case c.opt.Service:
		return sameUnit(pid)
	}
	return nil
}

// ownNetNS names the network namespace of this process, "" where that is not told.
func ownNetNS() string {
	name, _ := os.Readlink("/proc/self/ns/net")
	return name
}

// upgrade takes the connection out of HTTP.
func upgrade(w http.ResponseWriter) (*net.UnixConn, error) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("replace: %w", err)
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("replace: %w: no Unix socket", ErrUsage)
	}
	_ = uc.SetDeadline(time.Now().Add(readyWithin))
	if _, err := uc.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + api.ReplaceProtocol + "\r\n\r\n")); err != nil {
		uc.Close()
		return nil, fmt.Errorf("replace: %w", err)
	}
	return uc, nil
}

// announce sends the heir what takes it time to make ready, while all goes on here. It waits until it is ready.
func (c *Controller) announce(h *heir) error {
	p := parcel.New(c.opt.Version)
	defer p.Close()
	c.mu.Lock()
	s, err := c.preview(p)
	c.shown[h] = true
	c.mu.Unlock()
	if err == nil {
		p.State, err = json.Marshal(s)
	}
	if err == nil {
		_ = h.conn.SetDeadline(time.Now().Add(readyWithin))
		err = p.Send(h.conn)
	}
	if err != nil {
		return err
	}
	answer, err := h.answer()
	if err == nil && !answer.Ready {
		err = h.cannot(answer)
	}
	return err
}

// preview describes everything as pack would, and stops nothing. A VM that cannot be asked now is left out of it as far as its kind goes.
// The caller holds mu.
func (c *Controller) preview(p *parcel.Parcel) (packed, error) {
	vms := map[*attachment]*packedVM{}
	for _, u := range c.uplinks {
		for _, a := range u.sorted() {
			vms[a] = a.packed()
			if err := a.kind.show(a, p, vms[a]); err != nil {
				a.log.Warn("hand over: not shown ahead", "err", err)
			}
		}
	}
	return c.describe(p, vms)
}

// giveTo packs, sends, and waits for the heir's word. false: the heir is no more, and this process has gone on. The caller holds mu.
func (c *Controller) giveTo(h *heir) (given bool) {
	begin := time.Now()
	_ = c.listener.SetDeadline(begin) // who connects from here on is the heir's
	defer func() {
		if !given {
			_ = c.listener.SetDeadline(time.Time{})
		}
	}()
	p, left, stopped, err := c.pack()
	if err != nil {
		c.log.Error("not replaced: this controller goes on", "by", h.pid, "err", err)
		h.refuse(err)
		return false
	}
	defer p.Close()
	packedIn := time.Since(begin)
	release := sync.OnceFunc(func() { c.release(left) })
	meanwhile := func() {} // to unmap and close takes as long as all else, and guests wait
	if slices.ContainsFunc(left, (*uplink).bindsAnew) {
		meanwhile = release
	}
	var still time.Duration // that no frame moved; 0: an older version does not say
	moved, err := h.take(p, meanwhile)
	if err == nil {
		still = time.Duration(max(0, moved-stopped))
		err = c.succeededBy(h)
	}
	if err == nil {
		if !c.opt.Service { // the end that follows is none that a keeper should mend
			_ = c.opt.Store.Tell("STOPPING=1")
		}
		c.log.Info("replaced", "by", h.pid, "packed_ms", packedIn.Milliseconds(), "still_us", still.Microseconds(), "took_ms", time.Since(begin).Milliseconds())
		release()
		return true
	}
	release()
	gone := h.kill() // or it might use what we are about to use
	c.log.Error("not replaced: this controller goes on", "by", h.pid, "err", err)
	c.takeBack(p, gone)
	return false
}

// takeBack goes on with what was packed for an heir. gone is why that one may live, and nothing that it was given be used. The caller holds mu.
func (c *Controller) takeBack(p *parcel.Parcel, gone error) {
	s, bad := readPacked(p)
	if bad == nil {
		bad = c.surviveHeir(&s)
	}
	if bad == nil {
		bad = gone
	}
	if bad == nil {
		bad = c.unpack(p, &s, eachForItself)
	}
	if bad != nil {
		c.log.Error("could not go on with what was packed: the VMs are attached anew", "err", bad)
		c.attachAnew(&s)
	}
	c.ownChanges(&s)
	c.remember()
	c.note(c.forgetHeir(&s))
}

// succeededBy tells the service manager which process is the service from now on. It is told by this process and not by the heir: an heir
// whose word comes too late is killed, and a service whose process is killed is ended with all that belongs to it.
func (c *Controller) succeededBy(h *heir) error {
	if !c.opt.Service {
		return nil
	}
	if err := c.opt.Store.Main(h.pid); err != nil {
		return err
	}
	if err := c.opt.Store.Wait(); err != nil { // it will see: what it is told comes before the end of this process
		c.log.Warn("service manager", "err", err)
	}
	return nil
}

// attachAnew is what is left when a parcel cannot be gone on with: its VMs wait, and are attached as after a crash. The caller holds mu.
func (c *Controller) attachAnew(s *packed) {
	for i := range s.Uplinks {
		c.leaveOut(&s.Uplinks[i], "it could not be handed over")
	}
	if c.survivor != nil { // as long as the store has sockets, programs and connections, nobody can have them anew
		c.note(c.survivor.empty())
	}
	c.lookSoon()
}

// heir is the process that asks to take over.
type heir struct {
	conn  *net.UnixConn
	words *json.Decoder // of conn
	pid   int
	pidfd int // -1: it is this process, as in tests

	ends      bool // it has said that it cannot take over
	withdrawn bool // see Controller.withdraw; guarded by the controller's lock
}

// openHeir learns who is at the other end. It must be root, and a process that can be ended: one that does not answer any more may
// still be at work.
func openHeir(conn *net.UnixConn) (*heir, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("replace: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	switch {
	case err != nil || cerr != nil:
		return nil, fmt.Errorf("replace: who asks: %w", errors.Join(err, cerr))
	case cred.Uid != 0:
		return nil, fmt.Errorf("replace: %w: only root may", api.ErrPermission)
	case cred.Pid <= 0:
		return nil, fmt.Errorf("replace: %w: the process is in another PID namespace", api.ErrPermission)
	}
	h := &heir{conn: conn, words: json.NewDecoder(conn), pid: int(cred.Pid), pidfd: -1}
	if h.pid == os.Getpid() {
		return h, nil
	}
	if h.pidfd, err = unix.PidfdOpen(h.pid, 0); err != nil {
		return nil, fmt.Errorf("replace: process %d: %w", h.pid, err)
	}
	return h, nil
}

func (h *heir) close() {
	if h.pidfd >= 0 {
		_ = unix.Close(h.pidfd)
	}
}

// take sends the parcel, calls meanwhile, and waits for the word that it is in use: moved is since when.
func (h *heir) take(p *parcel.Parcel, meanwhile func()) (moved int64, err error) {
	_ = h.conn.SetDeadline(time.Now().Add(takesWithin))
	err = p.Send(h.conn)
	meanwhile()
	if err != nil {
		return 0, err
	}
	_ = h.conn.SetReadDeadline(time.Now().Add(takesWithin)) // its word may be there already
	answer, err := h.answer()
	if err == nil && answer.Moving {
		_ = h.conn.SetReadDeadline(time.Now().Add(keepsWithin))
		answer, err = h.answer()
	}
	if err == nil && !answer.Running {
		err = h.cannot(answer)
	}
	return answer.MovedNS, err
}

// answer reads the heir's next word.
func (h *heir) answer() (a api.ReplaceAnswer, err error) {
	if err := h.words.Decode(&a); err != nil {
		return a, fmt.Errorf("the new controller has not answered: %w", err)
	}
	return a, nil
}

// cannot is the error of an heir's word that it cannot take over.
func (h *heir) cannot(a api.ReplaceAnswer) error {
	h.ends = true
	return fmt.Errorf("the new controller cannot: %s", a.Error)
}

// refuse tells the heir that there will be no parcel.
func (h *heir) refuse(err error) {
	_ = json.NewEncoder(h.conn).Encode(api.ReplaceAnswer{Error: err.Error()})
}

// kill ends the heir and waits until it is gone. With an error it may live, and nothing that it was given may be used.
func (h *heir) kill() error {
	defer h.conn.Close() // afterwards: to the heir it says that we are gone
	if h.pidfd < 0 || h.ends && fdstore.Readable(h.pidfd, leaves) == nil {
		return nil
	}
	_ = unix.PidfdSendSignal(h.pidfd, unix.SIGKILL, nil, 0)
	if err := fdstore.Readable(h.pidfd, diesWithin); err != nil {
		return fmt.Errorf("the new controller, process %d, does not end: %w", h.pid, err)
	}
	return nil
}
