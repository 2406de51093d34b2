package controller

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const (
	ethHeader    = 14
	vlanTag      = 4
	etherVLAN    = 0x8100
	etherSVLAN   = 0x88a8
	macLen       = 6
	maxTxPackets = 256 // wire packets of one guest TSO frame: gso_size is the guest's word
)

// txRing is one TX virtqueue of a VM, read by the worker that owns it.
type txRing struct {
	q    *vhost.TxQueue
	port *workerPort
	emit func(*vhost.TxFrame) bool // bound once, so that polling allocates nothing
}

// transmit takes one burst from each TX virtqueue this worker reads to the wire and to the VMs beside it.
func (w *worker) transmit() int {
	total := 0
	for _, r := range w.tx {
		n, err := r.q.Poll(txBudget, r.emit)
		total += n
		if err != nil {
			continue // the port has failed and says so itself; the others go on
		}
	}
	if total > 0 {
		w.flush() // what went to a VM beside it
	}
	return total
}

// emit sends one guest frame. It returns true when there is no room in the TX ring: the frame stays in the virtqueue,
// which slows the guest down instead of losing its frames.
func (w *worker) emit(p *workerPort, f *vhost.TxFrame) (stop bool) {
	data := f.Data
	if drop, why := p.refuses(data); drop {
		p.cnt.txDropped[why]++
		return false
	}
	packets := 1
	gso := f.Hdr.GSOType != virtio.GSONone
	if gso {
		w.txFrag[0] = data
		if err := w.txSeg.Init(w.txFrag[:], flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
			p.cnt.txDropped[flowtable.ReasonMalformed]++
			return false
		}
		packets = w.txSeg.Count()
	}
	if packets > maxTxPackets {
		p.cnt.txDropped[flowtable.ReasonBadLength]++
		return false
	}
	if w.xs.TxRoom() < packets {
		w.txStalled = true
		return true
	}
	p.cnt.txFrames++
	p.cnt.txBytes += uint64(len(data))
	if gso {
		w.emitGSO(p)
		return false
	}
	buf, d, ok := w.xs.AllocTx()
	if !ok {
		w.cnt.txRingFull++
		return false
	}
	if len(data) > w.mtu+ethHeader || len(data)+vlanTag > len(buf) {
		w.xs.Free(d.Addr)
		p.cnt.txDropped[flowtable.ReasonBadLength]++
		return false
	}
	n := copy(buf, data)
	if f.Hdr.Flags&virtio.HdrNeedsCsum != 0 {
		if err := checksum.Complete(buf[:n], int(f.Hdr.CsumStart), int(f.Hdr.CsumOffset)); err != nil {
			w.xs.Free(d.Addr)
			p.cnt.txDropped[flowtable.ReasonMalformed]++
			return false
		}
	}
	w.route(p, buf, n, d)
	return false
}

func (w *worker) emitGSO(p *workerPort) {
	for {
		buf, d, ok := w.xs.AllocTx()
		if !ok {
			w.cnt.txRingFull++
			return
		}
		n, more, err := w.txSeg.Next(buf[:min(len(buf)-vlanTag, w.mtu+ethHeader)])
		if err != nil || !more {
			w.xs.Free(d.Addr)
			if err != nil {
				p.cnt.txDropped[flowtable.ReasonBadLength]++
			}
			return
		}
		w.route(p, buf, n, d)
	}
}

// refuses applies what an access port enforces: the source address is the VM's own, and tags are ours to set.
func (p *workerPort) refuses(data []byte) (bool, flowtable.Reason) {
	if len(data) < ethHeader {
		return true, flowtable.ReasonBadLength
	}
	if !p.allowSpoof && [macLen]byte(data[macLen:2*macLen]) != p.addr.mac {
		return true, flowtable.ReasonSourceMAC
	}
	if t := binary.BigEndian.Uint16(data[2*macLen:]); t == etherVLAN || t == etherSVLAN {
		return true, flowtable.ReasonVLANForeign
	}
	return false, 0
}

// route sends one complete wire packet in a TX chunk where it belongs: to a VM of this interface and VLAN, to all of them
// and the wire when its destination is a group, otherwise to the wire.
func (w *worker) route(p *workerPort, buf []byte, n int, d xsk.Desc) {
	dst := portAddr{vlan: p.addr.vlan, mac: [macLen]byte(buf[:macLen])}
	p.cnt.txWire++
	if dst.mac[0]&1 != 0 {
		w.copyToPorts(buf[:n], p.addr.vlan, p)
	} else if q := w.byAddr[dst]; q != nil && q.tap == nil { // the kernel's bridge would not bring the answer of a VM on its tap
		q.cnt.localFrames++
		packet.Parse(buf[:n], &w.pkt.Info)
		w.accept(q, buf[:n], d.Addr)
		return
	}
	if p.addr.vlan != 0 {
		n = insertTag(buf, n, p.addr.vlan)
	}
	if !w.xs.Send(d, n) {
		w.xs.Free(d.Addr)
		w.cnt.txRingFull++
		return
	}
	w.cnt.txFrames++
}

// insertTag puts an 802.1Q tag of priority 0 behind the addresses and returns the new length. buf has room for it.
func insertTag(buf []byte, n int, vlan uint16) int {
	copy(buf[2*macLen+vlanTag:], buf[2*macLen:n])
	binary.BigEndian.PutUint16(buf[2*macLen:], etherVLAN)
	binary.BigEndian.PutUint16(buf[2*macLen+2:], vlan)
	return n + vlanTag
}
