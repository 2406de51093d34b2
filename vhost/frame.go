package vhost

import "github.com/rscctl/rscctl/vhost/virtio"

// MaxFrame is the longest frame in bytes in either direction, Ethernet first:
// an IPv6 datagram of 65535 bytes of payload with one VLAN tag.
const MaxFrame = 14 + 4 + 40 + 65535

// minFrame is an Ethernet header.
const minFrame = 14

// TxFrame is what a guest sent. Data is a private copy that the guest cannot
// change any more, valid during the callback: of the whole frame, or, where Config.TxHead says so, of its first bytes. Then Rest has
// the others, which lie in the guest's memory and may change while they are read; its slices are valid until the Poll ends, the
// list of them during the callback.
type TxFrame struct {
	Hdr  virtio.NetHdr
	Data []byte
	Rest [][]byte

	queue *TxQueue // nil: Rest is the caller's own
}

// Len is the length of the frame in bytes.
func (f *TxFrame) Len() int {
	n := len(f.Data)
	for _, b := range f.Rest {
		n += len(b)
	}
	return n
}

// Whole copies Rest behind Data, which it does not read again. false: the guest's memory vanished, and its port has failed; then the callback
// leaves the frame.
func (f *TxFrame) Whole() bool {
	switch {
	case len(f.Rest) == 0:
		return true
	case f.queue != nil:
		return f.queue.whole(f) == nil
	}
	for _, b := range f.Rest {
		f.Data = append(f.Data, b...)
	}
	f.Rest = nil
	return true
}
