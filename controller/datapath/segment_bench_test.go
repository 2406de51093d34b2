package datapath

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

const (
	segPayload = 1448
	segTrain   = 16   // segments of a flow until PSH
	segRing    = 1024 // descriptors of the guest's ring
	segBuffer  = 4096 // bytes of its buffers
	segChunks  = 8192 // of the UMEM, unless many flows hold more
	segChunk   = 2048 // bytes of each

	// A burst of some microseconds that took this long was interrupted: it says something of the machine's other work only.
	segInterrupted = 200 * time.Microsecond
)

var segMAC = [6]byte{2, 0, 0, 0, 0, 2}

// BenchmarkSegmentToGuest is a segment's whole way through a worker: from the chunk in which AF_XDP left it into the guest's
// mergeable buffers, and the chunk back into the pool. That is metadata (or, where it is missing, parsing), verification,
// match, merge, seal, copy, used ring. Trains of 16 segments of 1,448 bytes with timestamps come in turn, one segment of each
// flow, and end at different times. The bursts are written to their chunks just before the clock runs, as the kernel does: by the same
// core, or ("cross") by another one. Chunks are used last in, first out, out of 8,192 of 2 KiB; the guest posts 1,024 buffers of 4 KiB. 4,096 flows in turn hold 30,000
// segments at a time, out of 65,536 chunks, so that each payload is out of the caches when it is copied, for the floor, too.
//
// The bursts of BenchmarkCopyFloor come first, all of them, as the two evict each other: "copy-ns/seg" is the floor and "ratio" the one over
// the other.
func BenchmarkSegmentToGuest(b *testing.B) {
	for _, l := range segLoads {
		b.Run(l.String(), func(b *testing.B) { runSegments(b, l) })
	}
	l := segLoad{flows: 64, parse: true}
	b.Run(l.String(), func(b *testing.B) { runSegments(b, l) })
}

// segLoad is what comes in.
type segLoad struct {
	flows  int
	parse  bool // no metadata in front of the frames
	cross  bool // another core writes them
	trains bool // a flow's train comes whole, one flow after the other
}

func (l segLoad) String() string {
	s := fmt.Sprintf("flows=%d", l.flows)
	for _, is := range []struct {
		on   bool
		name string
	}{{l.parse, "parse"}, {l.cross, "cross"}, {l.trains, "trains"}} {
		if is.on {
			s += "," + is.name
		}
	}
	return s
}

var segLoads = []segLoad{{flows: 1}, {flows: 16}, {flows: 64}, {flows: 128}, {flows: 4096}, {flows: 4096, trains: true}, {flows: 64, cross: true}}

// BenchmarkCopyFloor is a plain copy of the same bytes, train by train when the last segment is there, from chunks used in the
// same order into buffers of the same size: what no data plane that copies can go below.
func BenchmarkCopyFloor(b *testing.B) {
	for _, l := range segLoads {
		b.Run(l.String(), func(b *testing.B) { runCopies(b, l) })
	}
}

// chunksFor is the size of a UMEM that so many flows do not use up.
func chunksFor(flows int) int { return max(segChunks, flows*segTrain) }

func runCopies(b *testing.B, l segLoad) {
	f := newCopyFloor(b, l.flows)
	f.send.trains = l.trains
	if l.cross {
		f.writer = otherCore(b)
	}
	var m meter
	for range warmUp(l.flows) {
		f.burst()
	}
	for left := b.N; left > 0; left -= BurstFrames {
		m.add(f.burst())
	}
	b.ReportMetric(m.perSegment(), "ns/seg")
	b.ReportMetric(0, "ns/op") // holds what the kernel's part costs here
}

func runSegments(b *testing.B, l segLoad) {
	r := newSegRig(b, l.flows, !l.parse)
	f := newCopyFloor(b, l.flows)
	r.send.trains, f.send.trains = l.trains, l.trains
	if l.cross {
		w := otherCore(b)
		r.writer, f.writer = w, w
	}
	var way, floor meter
	for i := -warmUp(l.flows); i*BurstFrames < b.N; i++ {
		if d := f.burst(); i >= 0 {
			floor.add(d)
		}
	}
	for range warmUp(l.flows) {
		r.burst(b)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= BurstFrames {
		way.add(r.burst(b))
	}
	b.StopTimer()
	if s := r.w.table.Ledger(0); s.Dropped != [flowtable.NumReasons]uint64{} || s.Superframes == 0 || s.Passed[flowtable.ReasonBadTCPChecksum] != 0 {
		b.Fatalf("nothing was merged: %+v", s)
	}
	b.ReportMetric(way.perSegment(), "ns/seg")
	b.ReportMetric(floor.perSegment(), "copy-ns/seg")
	b.ReportMetric(way.perSegment()/floor.perSegment(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// otherCore binds the benchmark to one core, and returns what lets a function run on another.
func otherCore(b *testing.B) func(write func()) {
	b.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		b.Skip("allowed: one core")
	}
	var cores []int
	for i := 0; len(cores) < 2; i++ {
		if all.IsSet(i) {
			cores = append(cores, i)
		}
	}
	bind := func(core int) (release func()) {
		runtime.LockOSThread()
		var one unix.CPUSet
		one.Set(core)
		_ = unix.SchedSetaffinity(0, &one)
		return func() { // or the next one, whose thread may be this one or made by it, finds a machine of one core
			_ = unix.SchedSetaffinity(0, &all)
			runtime.UnlockOSThread()
		}
	}
	release := bind(cores[0])
	work, done := make(chan func()), make(chan struct{})
	b.Cleanup(func() {
		close(work)
		<-done
		release()
	})
	go func() {
		defer close(done)
		defer bind(cores[1])()
		for write := range work {
			write()
			done <- struct{}{}
		}
	}()
	return func(write func()) {
		work <- write
		<-done
	}
}

// warmUp is the number of bursts after which every chunk, buffer and list was used.
func warmUp(flows int) int { return 4*flows*segTrain/BurstFrames + 2*segRing/4 }

// meter sums up bursts that were not interrupted.
type meter struct {
	spent  time.Duration
	bursts int
}

func (m *meter) add(d time.Duration) {
	if d < segInterrupted {
		m.spent += d
		m.bursts++
	}
}

func (m *meter) perSegment() float64 {
	return float64(m.spent.Nanoseconds()) / float64(max(1, m.bursts)*BurstFrames)
}

// sender writes the packets of interleaved trains.
type sender struct {
	template []byte
	hdr      int // bytes of headers
	info     packet.Info
	flows    int
	trains   bool // one after the other, instead of a packet of each flow in turn
	flow     int
	step     int
}

func newSender(flows int) *sender {
	s := &sender{flows: flows, template: pt.TCP{DstMAC: segMAC, Len: segPayload, Opts: pt.Timestamps(7, 8)}.Frame()}
	s.hdr = len(s.template) - segPayload
	packet.Parse(s.template, &s.info)
	return s
}

// next writes one packet to p, which has the template's length. last: it ends its train.
func (s *sender) next(p []byte) (flow int, last bool) {
	flow = s.flow
	step := s.step
	if !s.trains {
		step += flow % segTrain // so that trains do not end together
	}
	copy(p, s.template)
	// Each change is made good in the checksums, so that the template's stay right.
	set16 := func(at, check int, v uint16) {
		c := binary.BigEndian.Uint16(p[check:])
		sum := uint32(^c) + uint32(^binary.BigEndian.Uint16(p[at:])) + uint32(v)
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(p[at:], v)
		binary.BigEndian.PutUint16(p[check:], ^uint16(sum>>16+sum))
	}
	seq := uint32(step) * segPayload
	set16(18, 24, uint16(step))
	set16(34, 50, uint16(1024+flow))
	set16(38, 50, uint16(seq>>16))
	set16(40, 50, uint16(seq))
	if last = step%segTrain == segTrain-1; last {
		set16(46, 50, binary.BigEndian.Uint16(p[46:])|pt.PSH)
	}
	if !s.trains || last {
		s.flow = (s.flow + 1) % s.flows
	}
	if s.trains || s.flow == 0 {
		s.step++
	}
	return flow, last
}

// umemNIC is a NIC that has memory, and nothing on the other side. What a segment's way calls costs what it costs with an
// xsk.Socket: the pool is the same stack, the bounds are checked in the same way.
type umemNIC struct {
	mem   []byte
	free  []uint64
	owner []uint64 // by chunk: 0 in the pool
}

func newUmemNIC(b testing.TB, chunks int) *umemNIC {
	b.Helper()
	u := &umemNIC{mem: segMemory(b, chunks*segChunk), owner: make([]uint64, chunks)}
	for i := chunks - 1; i >= 0; i-- {
		u.free = append(u.free, uint64(i)*segChunk)
	}
	return u
}

func (u *umemNIC) frame(d xsk.Desc) []byte {
	end := d.Addr + uint64(d.Len)
	if d.Len == 0 || end < d.Addr || end > uint64(len(u.mem)) || d.Addr/segChunk != (end-1)/segChunk {
		return nil
	}
	return u.mem[d.Addr:end:end]
}

func (u *umemNIC) meta(d xsk.Desc) []byte {
	if d.Addr >= uint64(len(u.mem)) || d.Addr%segChunk < xsk.MetaSize {
		return nil
	}
	return u.mem[d.Addr-xsk.MetaSize : d.Addr : d.Addr]
}

func (u *umemNIC) Free(ref uint64) {
	i := ref / segChunk
	if i >= uint64(len(u.owner)) || u.owner[i] != 1 {
		return
	}
	u.owner[i] = 0
	u.free = append(u.free, i*segChunk)
}

func (u *umemNIC) FreeAll(refs []uint64) {
	for _, r := range refs {
		u.Free(r)
	}
}

func (u *umemNIC) Chunks() xsk.Chunks                       { return xsk.NewChunks(u.mem, segChunk) }
func (u *umemNIC) Received(d xsk.Desc) (frame, meta []byte) { return u.frame(d), u.meta(d) }

func (u *umemNIC) AllocTx() ([]byte, xsk.Desc, bool) {
	if len(u.free) == 0 {
		return nil, xsk.Desc{}, false
	}
	a := u.free[len(u.free)-1]
	u.free = u.free[:len(u.free)-1]
	u.owner[a/segChunk] = 1
	d := xsk.Desc{Addr: a + xsk.Headroom, Len: segChunk - xsk.Headroom}
	return u.frame(d), d, true
}

func (u *umemNIC) Recv([]xsk.Desc) int       { return 0 }
func (u *umemNIC) Refill() int               { return 0 }
func (u *umemNIC) TxRoom() int               { return 0 }
func (u *umemNIC) Send(xsk.Desc, int) bool   { return false }
func (u *umemNIC) Publish()                  {}
func (u *umemNIC) BusyPoll()                 {}
func (u *umemNIC) TxPending() int            { return 0 }
func (u *umemNIC) TxUnsent() bool            { return false }
func (u *umemNIC) Flush() error              { return nil }
func (u *umemNIC) FD() int                   { return -1 }
func (u *umemNIC) Stats() (xsk.Stats, error) { return xsk.Stats{}, nil }

// segRig is a worker with a UMEM, and a guest that posts the same buffers again and again.
type segRig struct {
	w     *Worker
	nic   *umemNIC
	send  *sender
	meta  bool
	guest *user.Ring

	writer func(write func()) // who writes the frames
	write  func()             // fill, bound once
	bufs   []vring.Buffer
	descs  [BurstFrames]xsk.Desc
}

func newSegRig(b testing.TB, flows int, meta bool) *segRig {
	b.Helper()
	r := &segRig{send: newSender(flows), meta: meta, nic: newUmemNIC(b, chunksFor(flows)), writer: func(write func()) { write() }}
	r.write = r.fill
	var err error
	if r.w, err = New(Config{
		MTU: 1500, NIC: r.nic, WakeFD: -1, Chunks: chunksFor(flows), Slots: max(flowtable.DefaultSlots, 2*flows), Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Trouble: func() {},
	}); err != nil {
		b.Fatal(err)
	}
	r.w.begin()
	r.connect(b)
	return r
}

// connect opens a port, a front-end on it, and gives the running queue to the worker.
func (r *segRig) connect(b testing.TB) {
	v := newUserVM(b, allFeatures, segRing, segRing*segBuffer+1<<20)
	r.guest = v.RX(0)
	for i := range uint64(segRing) {
		gpa, _, err := v.Alloc(segBuffer, 64)
		if err != nil {
			b.Fatal(err)
		}
		r.bufs = append(r.bufs, vring.Buffer{Addr: gpa, Len: segBuffer, Writable: true})
		if err := r.guest.Driver.Add(r.bufs[i:i+1], i); err != nil {
			b.Fatal(err)
		}
	}
	r.guest.Driver.Publish()
	r.guest.Driver.DisableCalls()
	cfg := flowtable.DefaultPortConfig()
	cfg.Hold, cfg.GuestCsum, cfg.TSO4 = time.Hour, true, true
	if err := r.w.addPort(PortConfig{Addr: Addr{MAC: segMAC}}); err != nil {
		b.Fatal(err)
	}
	if err := r.w.startPort(0, NewUserGuest(v.port.RX(0), r.nic, r.w.Wake), nil, cfg); err != nil {
		b.Fatal(err)
	}
}

// fill writes the next burst into chunks.
func (r *segRig) fill() {
	for i := range r.descs {
		buf, d, ok := r.nic.AllocTx()
		if !ok {
			panic("no chunk")
		}
		d.Len = uint32(len(r.send.template))
		_, last := r.send.next(buf[:d.Len])
		if r.meta {
			r.send.meta(r.nic.meta(d), d.Len, last)
		} else {
			clear(r.nic.meta(d))
		}
		r.descs[i] = d
	}
}

// burst moves 64 segments, as Worker.step does, and returns what that took.
func (r *segRig) burst(b testing.TB) time.Duration {
	w := r.w
	r.writer(r.write)
	start := time.Now()
	w.turn++ // each burst has the guest's part of a turn of its own
	w.take(r.descs[:])
	w.table.EndBurst(w.now)
	w.flush()
	spent := time.Since(start)
	for {
		i, _, ok := r.guest.Driver.Used()
		if !ok {
			break
		}
		if err := r.guest.Driver.Add(r.bufs[i:i+1], i); err != nil {
			b.Fatal(err)
		}
	}
	r.guest.Driver.Publish()
	return spent
}

// meta describes a packet as the XDP program does.
func (s *sender) meta(m []byte, length uint32, psh bool) {
	encodeMeta(m, 0, &s.info, int(length))
	if psh {
		m[25] |= pt.PSH
	}
}

// copyFloor has chunks, taken last in first out, and buffers like a guest's.
type copyFloor struct {
	send   *sender
	chunks [][]byte
	held   [][][]byte // by flow: the packets of the train that has begun
	ready  [][][]byte // complete trains
	spare  [][][]byte // lists to use again
	bufs   [][]byte
	at     int
	writer func(write func())
}

// newCopyFloor maps memory of the kind that a UMEM and a guest have.
func newCopyFloor(b *testing.B, flows int) *copyFloor {
	b.Helper()
	f := &copyFloor{send: newSender(flows), held: make([][][]byte, flows), writer: func(write func()) { write() }}
	const chunk = segChunk
	chunks := chunksFor(flows)
	mem := segMemory(b, chunks*chunk)
	for i := chunks - 1; i >= 0; i-- {
		f.chunks = append(f.chunks, mem[i*chunk+xsk.Headroom:(i+1)*chunk:(i+1)*chunk])
	}
	mem = segMemory(b, segRing*segBuffer)
	for i := range segRing {
		f.bufs = append(f.bufs, mem[i*segBuffer:(i+1)*segBuffer:(i+1)*segBuffer])
	}
	return f
}

// segMemory maps a memory file of size bytes, shared, as a UMEM and a guest's memory are.
func segMemory(b testing.TB, size int) []byte {
	b.Helper()
	fd, err := unix.MemfdCreate("segments", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		b.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

func (f *copyFloor) burst() time.Duration {
	f.ready = f.ready[:0]
	f.writer(func() {
		for range BurstFrames {
			p := f.chunks[len(f.chunks)-1][:len(f.send.template)]
			f.chunks = f.chunks[:len(f.chunks)-1]
			flow, last := f.send.next(p)
			f.held[flow] = append(f.held[flow], p)
			if last {
				f.ready = append(f.ready, f.held[flow])
				f.held[flow] = nil
				if n := len(f.spare); n > 0 {
					f.held[flow], f.spare = f.spare[n-1], f.spare[:n-1]
				}
			}
		}
	})
	start := time.Now()
	for _, train := range f.ready {
		f.copyTrain(train)
	}
	spent := time.Since(start)
	for _, train := range f.ready {
		for _, p := range train {
			f.chunks = append(f.chunks, p[:cap(p)])
		}
		f.spare = append(f.spare, train[:0])
	}
	return spent
}

// copyTrain copies a train behind room for a header: the first packet whole, the payload of the others.
func (f *copyFloor) copyTrain(train [][]byte) {
	dst := f.bufs[f.at%segRing][virtio.HdrSize:]
	for i, src := range train {
		if i > 0 {
			src = src[f.send.hdr:]
		}
		for len(src) > 0 {
			if len(dst) == 0 {
				f.at++
				dst = f.bufs[f.at%segRing]
			}
			n := copy(dst, src)
			src, dst = src[n:], dst[n:]
		}
	}
	f.at++
}
