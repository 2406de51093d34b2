package vhost

import "github.com/rscctl/rscctl/vhost/virtio"

// MaxFrame is the longest frame in bytes in either direction, Ethernet first:
// an IPv6 datagram of 65535 bytes of payload with one VLAN tag.
const MaxFrame = 14 + 4 + 40 + 65535

// minFrame is an Ethernet header.
const minFrame = 14

// TxFrame is what a guest sent. Data is a private copy that the guest cannot
// change any more, valid during the callback.
type TxFrame struct {
	Hdr  virtio.NetHdr
	Data []byte
}
