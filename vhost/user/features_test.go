package user

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Which sets are legal is written down here once more, from section 5.1.3.1.
func TestEverySetOfFeaturesIsTakenOrRefused(t *testing.T) {
	bits := []uint{virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FGuestECN, virtio.FRSCExt, virtio.FMrgRxbuf,
		virtio.FCsum, virtio.FHostTSO4, virtio.FHostTSO6, virtio.FHostECN}
	a, b := socketPair(t)
	defer a.Close()
	defer b.Close()
	for n := range uint64(1) << len(bits) {
		var f virtio.Features
		for i, bit := range bits {
			f |= virtio.Features(n>>i&1) << bit
		}
		tso, hostTSO := f.Has(virtio.FGuestTSO4) || f.Has(virtio.FGuestTSO6), f.Has(virtio.FHostTSO4) || f.Has(virtio.FHostTSO6)
		legal := (!tso || f.Has(virtio.FGuestCsum)) && (tso || !f.Has(virtio.FGuestECN) && !f.Has(virtio.FRSCExt)) &&
			(!hostTSO || f.Has(virtio.FCsum)) && (hostTSO || !f.Has(virtio.FHostECN))
		s := NewSession(NewConn(b), SessionConfig{Features: virtio.Mask(bits...), MaxPairs: 1, Device: &device{}})
		_, err := s.setFeatures(&Message{Header: Header{Flags: FlagNeedReply}, Payload: u64(uint64(f))})
		if legal != (err == nil) || !legal && !errors.Is(err, ErrFeatures) {
			t.Errorf("%v: %v", f.Names(), err)
		}
		if legal && s.features != f {
			t.Errorf("%v: in force %v", f.Names(), s.features.Names())
		}
	}
}

// QEMU with guest_tso4=off,guest_tso6=off offers GUEST_ECN all the same, and Linux accepts it.
func TestECNWithoutTSOIsLeftOutOrRefused(t *testing.T) {
	const lone = protocolF | 1<<virtio.FVersion1 | 1<<virtio.FGuestCsum | 1<<virtio.FGuestECN | 1<<virtio.FHostECN
	p := newPeer(t)
	p.send(SetFeatures, 0, u64(lone))
	p.settle()
	if got, want := p.s.Info().Features, virtio.Mask(virtio.FVersion1, virtio.FGuestCsum); got != want {
		t.Errorf("in force %v, want %v", got.Names(), want.Names())
	}
	p.send(SetProtocolFeatures, 0, u64(uint64(DefaultProtocol)))
	if p.ack(SetFeatures, u64(lone)) == 0 {
		t.Error("a front-end that asks is told that all is well")
	}
	if err := p.wait(); !errors.Is(err, ErrFeatures) {
		t.Error(err)
	}
}
