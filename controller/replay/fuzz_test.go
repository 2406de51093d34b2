package replay

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
)

// FuzzReplay holds that no capture crashes the reader or the table, and that every packet read is accounted for once.
func FuzzReplay(f *testing.F) {
	// Small captures: the fuzzer spends its time on making inputs shorter before it looks for new ones.
	tcp := nanoPcap(slices.Concat(train(seg{seq: 1}, 3, 20, 0, us(1)), one(us(9), seg{seq: 61, ack: 1}),
		train(seg{v6: true, seq: 1}, 2, 20, us(60), 0), train(seg{vlan: 7, seq: 1}, 2, 8, us(10), us(1))))
	f.Add(tcp, false, uint16(50))
	f.Add(tcp[:len(tcp)-7], true, uint16(0))
	f.Add(bytes.Join([][]byte{ngSection(le), ngIface(le, 1, 0), ngPacket(le, 0, 1, 9, []byte("abcd"))}, nil), false, uint16(0))
	f.Add(bytes.Join([][]byte{ngSection(be), ngIface(be, 1, 2), ngBlock(be, blockSimple, append(be.AppendUint32(nil, 9), "xy"...))}, nil), true, uint16(1))
	f.Fuzz(func(t *testing.T, in []byte, rsc bool, hold uint16) {
		vlan := uint16(0)
		if hold%2 == 1 {
			vlan = 7
		}
		opt := Options{Features: DefaultFeatures(rsc), VLAN: vlan}
		if rsc {
			opt.Profile = flowtable.RSC
		}
		opt.Hold = microseconds(hold)
		ledger := &ledger{t: t}
		sum, err := Run(context.Background(), bytes.NewReader(in), opt, ledger, NewJSONSink(io.Discard))
		if (err != nil) != (sum.Error != nil) {
			t.Errorf("error %v, summary %v", err, sum.Error)
		}
		ledger.close(sum)
	})
}
