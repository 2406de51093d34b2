package datapath

import (
	"fmt"
	"maps"
	"slices"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
)

// Addr is where a frame is for: what tells the VMs of one interface apart.
type Addr struct {
	VLAN uint16 // host byte order; 0: untagged
	MAC  [6]byte
}

// PortConfig describes one VM to a worker.
type PortConfig struct {
	Index      uint32 // below MaxPorts; the flow table and the messages know the VM by it
	Generation uint32 // how many VMs had the index before; XDP knows the VM by both
	Addr       Addr
	MACs       [][6]byte // further addresses of the VM, in the same VLAN
	MTU        int       // of packets that it sends and gets, behind the Ethernet header; 0: the wire's
	AllowSpoof bool      // frames with a foreign source address may leave
	// Isolated: nothing crosses between the VM and the VMs beside it, in either direction.
	Isolated bool
	// Bridged: the kernel's bridge brings the VM its group frames and its neighbours' frames, so the worker does not.
	Bridged bool
	// Host: the host is a neighbour of the VM, with all that is behind it.
	Host bool
	// Sources: the IP addresses that the VM may send from, and claim by ARP and ND; nil: any.
	Sources *Sources
	// TxRate, RxRate: what it may send and get, of the bytes on the wire; nil: any. All workers of the VM share them, and a clock.
	TxRate, RxRate *Bucket
	// NoteSenders: keep the source addresses of recent frames for Senders.
	NoteSenders bool
}

// port is one VM as one worker sees it. It belongs to the worker's goroutine.
type port struct {
	PortConfig
	id      uint32
	guest   Guest // nil while the VM's rings do not run
	err     error // why the guest is finished, nil while it is not
	out     *outQueue
	credit  credit
	group   groupBound
	hungry  bool   // the guest has no room
	waiting bool   // frames wait for the next burst or longer: what waits in out is bounded
	asked   uint64 // the turn in which the hungry guest was tried last
	txAt    int64  // by Worker.now, when what it sends goes on: its rate was used up; 0: it was not
	rxAt    int64  // when what comes for it does
	stall   stall
	apart   int64 // until then no frame is lent between its memory and another's
	paused  bool  // the guest is away for a moment: what comes for it waits
	late    bool  // steering is off: what still comes was on its way when it was switched
	dirty   bool  // in Worker.dirty
	held    int   // chunks that the guest has not given back
	pollAt  int   // place of the guest's descriptor in the poll set
	senders *senderSet
	refusal refusal
	rules   flowtable.PortConfig
	probes  []*Probe  // that hear of its frames; nil: none
	sources []*egress // of Worker.egress, the VM's
	source  int       // the one that is polled next

	ledger *flowtable.Ledger // the table's, in which the worker books
	cnt    PortCounters
}

// owns reports whether an address is one of the VM's.
func (p *port) owns(mac [macLen]byte) bool { return mac == p.Addr.MAC || slices.Contains(p.MACs, mac) }

// egress is one source of a VM, read by the worker that owns it.
type egress struct {
	src  Source
	port *port
	emit func(*vhost.TxFrame) vhost.Next // bound once, so that polling allocates nothing

	idle  uint64 // the turn in which it had nothing
	short bool   // its frame waits for chunks, or for the kernel: more frames are no news

	kernel bool   // its unicast frames to the wire go by Wire
	unsure bool   // some of them may be on their way there
	bulkAt int64  // when the last TSO frame went
	mark   uint64 // Worker.sent behind the last one that went by AF_XDP
	lost   int    // times in a row that a full queue has dropped the frame in front
}

// port returns the port with an index, nil where there is none.
func (w *Worker) port(index uint32) *port {
	if index >= MaxPorts {
		return nil
	}
	return w.ports[index]
}

// portByID returns the port that XDP knows by an id, nil when it has gone, whoever has its index now.
func (w *Worker) portByID(id uint32) *port {
	if p := w.ports[meta.PortIndex(id)]; p != nil && p.id == id {
		return p
	}
	return nil
}

func (w *Worker) addPort(cfg PortConfig) error {
	if cfg.Index >= MaxPorts {
		return errorsJoinNoPort(cfg.Index, nil)
	}
	w.removePort(cfg.Index)
	l := w.table.Ledger(cfg.Index)
	l.Reset() // the index may have been another VM's
	w.table.LimitFrame(cfg.Index, 0)
	w.table.Single(cfg.Index, false, w.now)
	w.table.LeaveSums(cfg.Index, false)
	p := &port{PortConfig: cfg, id: meta.PortID(cfg.Index, cfg.Generation), ledger: l, out: newOutQueue(l)}
	if cfg.NoteSenders {
		p.senders = &senderSet{}
	}
	w.ports[cfg.Index] = p
	w.learn(p)
	w.list = append(w.list, p)
	w.fdsStale = true
	return nil
}

// learn makes the VM the one that has its addresses.
func (w *Worker) learn(p *port) {
	w.byAddr[p.Addr] = p
	for _, mac := range p.MACs {
		w.byAddr[Addr{VLAN: p.Addr.VLAN, MAC: mac}] = p
	}
}

// forget undoes learn, but for addresses that another VM has by now.
func (w *Worker) forget(p *port) {
	maps.DeleteFunc(w.byAddr, func(_ Addr, q *port) bool { return q == p })
}

func (w *Worker) amendPort(cfg PortConfig) error {
	p := w.port(cfg.Index)
	if p == nil {
		return errorsJoinNoPort(cfg.Index, nil)
	}
	w.forget(p)
	p.MACs = cfg.MACs
	w.learn(p)
	p.Isolated, p.Host, p.Sources, p.TxRate, p.RxRate = cfg.Isolated, cfg.Host, cfg.Sources, cfg.TxRate, cfg.RxRate
	p.txAt, p.rxAt = 0, 0 // whoever has to wait says so again
	return nil
}

func (w *Worker) removePort(index uint32) {
	p := w.port(index)
	if p == nil {
		return
	}
	w.stopPort(index)
	p.endProbes(ProbePortGone)
	w.ports[index] = nil
	w.forget(p)
	for i, q := range w.list {
		if q == p {
			w.list = append(w.list[:i], w.list[i+1:]...)
			break
		}
	}
	w.fdsStale = true
}

// startPort puts a guest in place. The NIC keeps a flow on one of its queues and a worker on one guest, so a flow stays on one
// queue pair.
func (w *Worker) startPort(index uint32, g Guest, sources []Source, rules flowtable.PortConfig) error {
	p := w.port(index)
	if p == nil {
		_, err := g.Close()
		return errorsJoinNoPort(index, err)
	}
	if !p.paused {
		w.stopPort(index)
	}
	if err := w.table.SetPort(index, rules, w.now); err != nil {
		_, _ = g.Close()
		return err
	}
	if !p.paused { // after a pause it is the same guest
		w.forgive(p)
	}
	p.guest, p.err, p.paused, p.rules = g, nil, false, rules
	w.leaveSums(p)
	if p.out.n > 0 {
		w.touch(p)
	}
	for _, s := range sources {
		e := &egress{src: s, port: p, unsure: w.cfg.Wire != nil, mark: w.sent} // what its driver sent before may be on its way
		e.emit = func(f *vhost.TxFrame) vhost.Next { return w.emit(e, f) }
		w.egress, p.sources = append(w.egress, e), append(p.sources, e)
	}
	if len(sources) > 0 {
		w.round.add(p)
	}
	w.fdsStale = true
	return nil
}

func errorsJoinNoPort(index uint32, err error) error {
	if err != nil {
		return fmt.Errorf("port %d: %w: %w", index, ErrNoPort, err)
	}
	return fmt.Errorf("port %d: %w", index, ErrNoPort)
}

func (w *Worker) stopPort(index uint32) {
	p := w.port(index)
	if p == nil || (p.guest == nil && !p.paused) {
		return
	}
	p.paused = false
	w.table.ClearPort(index, flowtable.ReasonStop, w.now)
	w.fill(p)
	p.credit.walk = max(p.credit.walk, walkTurn) // its last turn: what the guest takes, it gets
	p.asked = 0
	w.flushPort(p)
	w.dropQueued(p, flowtable.ReasonPortDown)
	w.closeGuest(p)
	w.dropSources(p)
}

// pausePort forgets a port's guest and sources, and lets what is held and what comes wait for the next one.
func (w *Worker) pausePort(index uint32) {
	p := w.port(index)
	if p == nil || p.guest == nil {
		return
	}
	p.paused = true
	w.closeGuest(p)
	w.dropSources(p)
}

func (w *Worker) dropSources(p *port) {
	keep := w.egress[:0]
	for _, e := range w.egress {
		if e.port != p {
			keep = append(keep, e)
		}
	}
	clear(w.egress[len(keep):])
	w.egress = keep
	w.round.remove(p)
	p.sources, p.source = nil, 0
	w.txNeed = 0 // whoever needs room says so again
	w.fdsStale = true
}

// closeGuest ends a port's guest, which gives its chunks back.
func (w *Worker) closeGuest(p *port) {
	g := p.guest
	if g == nil {
		return
	}
	p.guest = nil // first: one that panics is not closed again
	w.keeps(p, 0)
	p.hungry = false
	unsent, err := g.Close()
	if err != nil {
		w.log.Warn("guest: close", "port", p.Index, "err", err)
	}
	p.cnt.Unsent += uint64(unsent)
}

// senderSet remembers the source addresses of recent frames, so that a bridge beside us can be told of them. Two senders that
// share a place take turns.
type senderSet struct {
	mac [64][6]byte
	use [64]bool
}

func (s *senderSet) note(frame []byte) {
	mac := [6]byte(frame[6:12])
	i := (mac[5] ^ mac[4]*3 ^ mac[3]*7) % uint8(len(s.mac))
	s.mac[i], s.use[i] = mac, true
}

// take returns the addresses seen since the last time.
func (s *senderSet) take(out [][6]byte) [][6]byte {
	for i := range s.use {
		if s.use[i] {
			out, s.use[i] = append(out, s.mac[i]), false
		}
	}
	return out
}
