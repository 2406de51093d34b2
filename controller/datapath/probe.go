package datapath

import (
	"sync/atomic"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// ProbeKind is what a Probe hears of.
type ProbeKind uint8

const (
	ProbeFates ProbeKind = iota // of each frame that leaves the flow table, and of each that is given up
	ProbeWire                   // of each frame as it came for the VM, and of each as the VM sent it
	ProbeGuest                  // of each frame as the guest got it
)

// Deed is what was done with the frame of a record.
type Deed uint8

const (
	Sealed    Deed = iota // ProbeFates: it left the table as a superframe. ProbeWire: it joined one, and ended it
	Passed                // it left the table alone
	Held                  // ProbeWire: it waits in the table; why it will leave is not known yet
	Dropped               // it was given up
	Delivered             // ProbeGuest: the guest has it
	Sent                  // ProbeWire: the VM sent it, and it went on
	numDeeds
)

var deedNames = [numDeeds]string{"seal", "pass", "hold", "drop", "deliver", "send"}

// String returns the deed's fixed name.
func (d Deed) String() string {
	if d < numDeeds {
		return deedNames[d]
	}
	return "unknown"
}

// DeedNames are the names of the deeds, by their numbers.
func DeedNames() []string { return append([]string(nil), deedNames[:]...) }

// DeedSet is a set of deeds. The zero value has them all.
type DeedSet uint16

// With is the set with one more.
func (s DeedSet) With(d Deed) DeedSet { return s | 1<<d }

func (s DeedSet) has(d Deed) bool { return s == 0 || s&(1<<d) != 0 }

// ProbeRecord is what a Probe says of one frame.
type ProbeRecord struct {
	Time     int64 // ns since 1970, of the burst that the frame was in
	Held     int64 // ns that its first packet waited in the table: Sealed and Passed
	Len      int   // bytes of the frame, Ethernet first
	Packets  int   // that it was made of
	Segments int   // of them with data
	Hdr      virtio.NetHdr
	Deed     Deed
	Reason   flowtable.Reason // means nothing with Held and Sent
	ToWire   bool             // the VM sent it
	Data     []byte           // the first bytes of the frame
}

// Bounds of a Probe.
const (
	ProbeRecords = 4096     // that wait to be read, a power of two
	MaxSnapLen   = 1 << 17  // bytes of a frame: more than any has
	fateSnapLen  = 128      // with the headers of all but odd frames
	minProbeMem  = 4 * 1024 // bytes
)

// ProbeConfig says what a Probe hears of, and how much of it it keeps.
type ProbeConfig struct {
	Kind    ProbeKind
	SnapLen int // bytes of each frame, at most MaxSnapLen; 0: the headers
	Flow    FlowMatch
	Deeds   DeedSet // ProbeFates: those that it hears of
	Memory  int     // bytes for the frames that wait to be read: at least two of SnapLen, and no more than ProbeRecords of them
}

// ProbeEnd is why a Probe hears of nothing any more.
type ProbeEnd uint32

const (
	ProbeRuns       ProbeEnd = iota // it has not ended
	ProbePortGone                   // the VM was taken off the worker
	ProbeWorkerGone                 // the worker has ended
)

// Probe hears of one VM's frames on one worker. It is a bounded ring with the worker as its one writer and one reader: who calls
// Next. The worker copies into it without a lock, an allocation or a system call, and wakes nobody up. When the ring is full the
// frame is not heard of and counted, and the worker goes on: a reader that is slow loses, and nobody else.
type Probe struct {
	cfg  ProbeConfig
	recs []probeSlot
	mem  []byte

	// The worker's. A record is staged, filled in, and published when it is known to be true.
	head   uint64 // records staged, ever
	shown  uint64 // of them published
	at     uint64 // bytes of mem used, ever: the place of the next frame is at modulo its length
	epoch  int64  // from the worker's clock to ns since 1970
	puts   int    // ProbeGuest: Puts of the burst in hand
	short  int    // of them not staged for lack of room: from then on none is, until the burst is settled
	shortA int    // the first of those

	_         [64]byte // what one side writes is in no cache line of the other's
	published atomic.Uint64
	lost      atomic.Uint64
	ended     atomic.Uint32

	_       [64]byte
	read    atomic.Uint64 // records that the reader is done with
	readMem atomic.Uint64 // and the bytes of mem
	reading bool          // the reader's: it has the record behind read
	given   atomic.Bool   // the reader is gone
}

// probeSlot is a record in the ring. Its Data is mem[from:from+n].
type probeSlot struct {
	ProbeRecord
	from, n int
	before  uint64 // Probe.at before it
	after   uint64 // and behind it
	put     int    // ProbeGuest: the number of its Put in the burst
}

// NewProbe returns a probe that hears of nothing until Worker.AddProbe. All its memory is allocated here.
func NewProbe(cfg ProbeConfig) *Probe {
	if cfg.SnapLen <= 0 {
		cfg.SnapLen = fateSnapLen
	}
	cfg.SnapLen = min(cfg.SnapLen, MaxSnapLen)
	cfg.Memory = max(min(cfg.Memory, ProbeRecords*cfg.SnapLen), 2*cfg.SnapLen, minProbeMem)
	return &Probe{cfg: cfg, recs: make([]probeSlot, ProbeRecords), mem: make([]byte, cfg.Memory), shortA: -1}
}

// Next reads the oldest record into r, and reports false when there is none now. r.Data stays as it is until the next call.
func (p *Probe) Next(r *ProbeRecord) bool {
	at := p.read.Load()
	if p.reading {
		p.reading = false
		p.readMem.Store(p.slot(at).after)
		at++
		p.read.Store(at)
	}
	if at == p.published.Load() {
		return false
	}
	s := p.slot(at)
	*r = s.ProbeRecord
	r.Data = p.mem[s.from : s.from+s.n : s.from+s.n]
	p.reading = true
	return true
}

// Lost is how many frames were not heard of because the ring was full.
func (p *Probe) Lost() uint64 { return p.lost.Load() }

// Ended is why nothing more will come. What was published before is still to be read.
func (p *Probe) Ended() ProbeEnd { return ProbeEnd(p.ended.Load()) }

func (p *Probe) slot(i uint64) *probeSlot { return &p.recs[i&(ProbeRecords-1)] }

// stage copies what the configuration keeps of a frame into the ring, where the reader does not see it yet, and returns the
// record to be filled in; nil when there is no room.
func (p *Probe) stage(size int, frags ...[]byte) *probeSlot {
	n := min(size, p.cfg.SnapLen)
	if p.head-p.read.Load() == ProbeRecords {
		return nil
	}
	at := p.at
	from := int(at % uint64(len(p.mem)))
	if from+n > len(p.mem) { // a frame is in one piece
		at += uint64(len(p.mem) - from)
		from = 0
	}
	if at+uint64(n)-p.readMem.Load() > uint64(len(p.mem)) {
		return nil
	}
	s := p.slot(p.head)
	p.head++
	*s = probeSlot{from: from, before: p.at, after: at + uint64(n)}
	s.Len = size
	p.at = s.after
	dst := p.mem[from : from+n]
	for _, f := range frags {
		if s.n += copy(dst[s.n:], f); s.n == n {
			break
		}
	}
	return s
}

// publish shows the reader all that is staged.
func (p *Probe) publish() {
	p.shown = p.head
	p.published.Store(p.head)
}

// lose counts frames that the reader will not hear of.
func (p *Probe) lose(n int) { p.lost.Store(p.lost.Load() + uint64(n)) } // one writer

// stagePut stages what a guest's Put has taken.
func (p *Probe) stagePut(size int, frags [][]byte) *probeSlot {
	put := p.puts
	p.puts++
	switch {
	case !p.cfg.Flow.hears(frags, size):
		return nil
	case p.shortA >= 0:
		p.short++
		return nil
	}
	s := p.stage(size, frags...)
	if s == nil {
		p.shortA, p.short = put, 1
		return nil
	}
	s.put = put
	return s
}

// settle publishes what the first n Puts of a burst took, and forgets the others: they will be put again.
func (p *Probe) settle(n int) {
	for p.shown < p.head && p.slot(p.shown).put < n {
		p.shown++
	}
	if p.shown < p.head {
		p.at = p.slot(p.shown).before
		p.head = p.shown
	}
	p.publish()
	if p.shortA >= 0 && n > p.shortA {
		p.lose(min(p.short, n-p.shortA))
	}
	p.puts, p.short, p.shortA = 0, 0, -1
}
