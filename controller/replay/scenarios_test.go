package replay

import (
	"bytes"
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// scenario is one capture and how it is replayed. Its golden files are testdata/NAME.in.pcap, NAME.out.pcap and NAME.json.
type scenario struct {
	name  string
	opt   Options
	input func() []byte
	fails bool // the capture is damaged
}

func gro(hold time.Duration) Options { return Options{Hold: hold, Features: DefaultFeatures(false)} }

func rsc(hold time.Duration) Options {
	return Options{Profile: flowtable.RSC, Hold: hold, Features: DefaultFeatures(true)}
}

func with(opt Options, list string) Options {
	opt.Features, _ = ParseFeatures(list, opt.Features)
	return opt
}

func access(opt Options, vlan uint16) Options {
	opt.VLAN = vlan
	return opt
}

// tagged puts a tag in front of what the frames have.
func tagged(list []arrival, vlan uint16) []arrival {
	for i, a := range list {
		f := append(bytes.Clone(a.frame[:12]), 0x81, 0, byte(vlan>>8), byte(vlan))
		list[i].frame = append(f, a.frame[12:]...)
	}
	return list
}

func plain(lists ...[]arrival) func() []byte {
	return func() []byte { return nanoPcap(slices.Concat(lists...)) }
}

// merged orders several flows' packets by time, as a wire would.
func merged(lists ...[]arrival) func() []byte {
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	return func() []byte { return nanoPcap(all) }
}

func one(at int64, s seg) []arrival { return []arrival{{at: at, frame: s.frame()}} }

func raw(at int64, frame ...byte) []arrival { return []arrival{{at: at, frame: frame}} }

func scenarios(tb testing.TB) []scenario {
	tb.Helper()
	udp := []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0x66, 0xc9,
		10, 0, 0, 1, 10, 0, 0, 2, 0, 53, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	arp := append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6}, make([]byte, 46)...)
	return []scenario{
		{name: "train-max-bytes-then-psh", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1}, 50, 1448, 0, 500),
			one(us(30), seg{seq: 1 + 50*1448, id: 50, n: 700, flags: ack | psh, opts: timestamps(100)}))},
		{name: "jumbo-segments-of-both-families", opt: gro(DefaultHold), input: merged(
			train(seg{seq: 1}, 9, 8948, 0, us(1)), train(seg{v6: true, seq: 1}, 9, 8928, 500, us(1)),
			train(seg{port: 1, seq: 1}, 3, 1448, 700, us(1)))},
		{name: "deadline-at-its-own-time", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1}, 3, 1000, 0, us(10)), one(us(200), seg{seq: 3001, id: 3, n: 1000, opts: timestamps(100)}))},
		{name: "deadline-is-not-extended", opt: gro(DefaultHold), input: plain(train(seg{seq: 1}, 12, 1000, 0, us(15)))},
		{name: "hold-0-bursts-of-equal-time", opt: gro(0), input: plain(
			train(seg{seq: 1}, 2, 1000, 0, 0), train(seg{port: 1, seq: 1}, 3, 1000, 0, 0),
			train(seg{seq: 2001, id: 2}, 2, 1000, 0, 0), train(seg{seq: 4001, id: 4}, 2, 1000, 1, 0))},
		{name: "time-backwards-clock-stands", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1}, 2, 1000, us(100), 0), train(seg{seq: 2001, id: 2}, 2, 1000, 0, us(1)),
			train(seg{seq: 4001, id: 4}, 2, 1000, us(120), us(1)))},
		{name: "interleaved-families-and-flows", opt: gro(DefaultHold), input: merged(
			train(seg{seq: 1}, 8, 1448, 0, us(4)), train(seg{port: 1, seq: 9000}, 8, 1448, 500, us(4)),
			train(seg{v6: true, seq: 5}, 8, 1428, 1000, us(4)), train(seg{v6: true, port: 1, seq: 1 << 31}, 8, 1428, 1500, us(4)))},
		{name: "handshake-data-close", opt: gro(DefaultHold), input: plain(
			one(0, seg{seq: 0, flags: syn, opts: []byte{2, 4, 5, 0xb4}}), train(seg{seq: 1, id: 1}, 3, 1000, us(5), us(1)),
			one(us(9), seg{seq: 3001, id: 4, n: 10, flags: ack | psh | fin, opts: timestamps(100)}),
			one(us(20), seg{seq: 3012, id: 5}))},
		{name: "pure-and-duplicate-acks", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1, ack: 5}, 2, 1000, 0, us(1)), one(us(3), seg{seq: 2001, ack: 5, id: 2, opts: timestamps(100)}),
			one(us(4), seg{seq: 2001, ack: 9, id: 3, opts: timestamps(100)}),
			train(seg{seq: 2001, ack: 9, id: 4}, 2, 1000, us(5), us(1)))},
		{name: "sequence-gap-and-retransmission", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1}, 2, 1000, 0, us(1)), train(seg{seq: 4001, id: 4}, 2, 1000, us(3), us(1)),
			train(seg{seq: 2001, id: 2}, 2, 1000, us(5), us(1)))},
		{name: "bad-checksum-stays-alone", opt: gro(DefaultHold), input: plain(
			train(seg{seq: 1}, 2, 1000, 0, us(1)), one(us(2), seg{seq: 2001, id: 2, n: 1000, corrupt: true, opts: timestamps(100)}),
			train(seg{seq: 3001, id: 3}, 2, 1000, us(3), us(1)))},
		{name: "vlan-tagged", opt: gro(DefaultHold), input: plain(
			train(seg{vlan: 100, seq: 1}, 3, 1000, 0, us(1)), train(seg{vlan: 100 | 5<<13, seq: 3001, id: 3}, 2, 1000, us(4), us(1)))},
		{name: "access-port-takes-its-tag-off", opt: access(rsc(DefaultHold), 100), input: plain(
			train(seg{vlan: 100, seq: 1}, 2, 1000, 0, us(1)), train(seg{vlan: 100 | 5<<13, seq: 2001, id: 2}, 2, 1000, us(2), us(1)))},
		{name: "access-port-gets-its-vlan-only", opt: access(gro(DefaultHold), 100), input: func() []byte {
			list := slices.Concat(train(seg{seq: 1}, 2, 1000, 0, us(1)), train(seg{vlan: 101, seq: 1}, 2, 1000, us(2), us(1)),
				train(seg{vlan: 100, seq: 1}, 2, 1000, us(4), us(1)), train(seg{vlan: 100, v6: true, seq: 1}, 3, 1000, us(6), us(1)))
			stack := tagged(train(seg{vlan: 7, seq: 1, port: 1}, 2, 1000, us(9), us(1)), 100) // the inner tag is nobody's
			list[8].snap = 96
			return nanoPcap(slices.Concat(list, stack, raw(us(20), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x81, 0, 0, 100)))
		}},
		{name: "not-tcp", opt: gro(DefaultHold), input: plain(raw(0, udp...), raw(us(1), arp...), raw(us(2), 1, 2, 3), raw(us(3)))},
		{name: "cut-by-snap-length", opt: gro(DefaultHold), input: func() []byte {
			list := train(seg{seq: 1}, 6, 1000, 0, us(1))
			list[2].snap, list[4].snap = 96, 20
			return nanoPcap(list)
		}},
		{name: "rsc-psh-ack-ttl-size", opt: rsc(DefaultHold), input: plain(
			one(0, seg{seq: 1, n: 1000, ack: 1, flags: ack | psh}), one(us(1), seg{seq: 1001, n: 1000, ack: 2, ttl: 60, id: 9}),
			one(us(2), seg{seq: 2001, n: 300, ack: 3, win: 900, id: 4}), one(us(3), seg{seq: 2301, n: 1200, ack: 3, win: 800, id: 5}))},
		{name: "rsc-window-updates-absorbed", opt: rsc(DefaultHold), input: plain(
			one(0, seg{seq: 1, n: 1000, ack: 1}), one(us(1), seg{seq: 1001, ack: 1, win: 700}),
			one(us(2), seg{seq: 1001, n: 1000, ack: 1, win: 700}),
			one(us(100), seg{seq: 2001, n: 1000, ack: 1}), one(us(101), seg{seq: 3001, ack: 1, win: 600}))},
		{name: "rsc-not-negotiated-is-gro", opt: with(rsc(DefaultHold), "-rsc"), input: plain(
			one(0, seg{seq: 1, n: 1000, ack: 1, id: 1, flags: ack | psh}), train(seg{seq: 1001, ack: 2, id: 2}, 2, 1000, us(1), us(1)))},
		{name: "without-tso6", opt: with(gro(DefaultHold), "-tso6"), input: merged(
			train(seg{seq: 1}, 2, 1000, 0, us(1)), train(seg{v6: true, seq: 1}, 2, 1000, 100, us(1)))},
		{name: "damaged-in-the-middle", opt: gro(DefaultHold), fails: true, input: func() []byte {
			in := nanoPcap(train(seg{seq: 1}, 4, 1000, 0, us(1)))
			return in[:len(in)-200]
		}},
		{name: "pcapng-interfaces-and-resolutions", opt: gro(DefaultHold), input: func() []byte {
			list := train(seg{seq: 1}, 4, 1000, 0, 0)
			return bytes.Join([][]byte{
				ngSection(be), ngIface(be, 1, 0), ngIface(be, 1, 0, ngOption(be, optTSResolution, []byte{9})...),
				ngPacket(be, 0, capStart*1e6, len(list[0].frame), list[0].frame),
				ngPacket(be, 1, capStart*1e9+500, len(list[1].frame), list[1].frame),
				ngPacket(be, 0, capStart*1e6+1, len(list[2].frame), list[2].frame),
				ngBlock(be, blockSimple, append(be.AppendUint32(nil, uint32(len(list[3].frame))), list[3].frame...)),
			}, nil)
		}},
	}
}
