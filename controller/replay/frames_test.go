package replay

import (
	"encoding/binary"
	"time"
)

// seg is one TCP segment to build. Zero values are those of an established flow between two fixed hosts.
type seg struct {
	v6      bool
	port    uint16 // source port on top of 40000: tells flows apart
	seq     uint32
	n       int // payload bytes
	ack     uint32
	win     uint16
	flags   uint8 // ACK if 0
	ttl     uint8
	id      uint16
	vlan    uint16 // tag if not 0
	corrupt bool   // TCP checksum
	opts    []byte
}

const (
	fin = 0x01
	syn = 0x02
	psh = 0x08
	ack = 0x10
)

// timestamps is the usual NOP NOP TS option block.
func timestamps(val uint32) []byte {
	b := []byte{1, 1, 8, 10}
	b = be.AppendUint32(b, val)
	return be.AppendUint32(b, 7)
}

// frame builds the Ethernet frame with true checksums, computed here and not by the code under test.
func (s seg) frame() []byte {
	if s.flags == 0 {
		s.flags = ack
	}
	if s.ttl == 0 {
		s.ttl = 64
	}
	if s.win == 0 {
		s.win = 500
	}
	src, dst := []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}
	if s.v6 {
		src = append(make([]byte, 15), 1)
		src[0], src[1] = 0xfd, 1
		dst = append(append([]byte{}, src[:15]...), 2)
	}
	tcp := be.AppendUint16(nil, 40000+s.port)
	tcp = be.AppendUint16(tcp, 5201)
	tcp = be.AppendUint32(tcp, s.seq)
	tcp = be.AppendUint32(tcp, s.ack)
	tcp = append(tcp, byte(5+len(s.opts)/4)<<4, s.flags)
	tcp = be.AppendUint16(tcp, s.win)
	tcp = append(tcp, 0, 0, 0, 0)
	tcp = append(tcp, s.opts...)
	for i := range s.n {
		tcp = append(tcp, byte(s.seq+uint32(i)))
	}
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = be.AppendUint32(pseudo, uint32(len(tcp)))
	pseudo = append(pseudo, 0, 0, 0, 6)
	be.PutUint16(tcp[16:], ^sum16(append(pseudo, tcp...)))
	if s.corrupt {
		tcp[17] ^= 0x5a
	}
	b := []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1}
	if s.vlan != 0 {
		b = be.AppendUint16(be.AppendUint16(b, 0x8100), s.vlan)
	}
	if s.v6 {
		b = be.AppendUint16(b, 0x86dd)
		b = append(b, 0x60, 0, 0, 0)
		b = be.AppendUint16(b, uint16(len(tcp)))
		b = append(b, 6, s.ttl)
		b = append(append(b, src...), dst...)
	} else {
		b = be.AppendUint16(b, 0x0800)
		ip := be.AppendUint16([]byte{0x45, 0}, uint16(20+len(tcp)))
		ip = be.AppendUint16(ip, s.id)
		ip = append(ip, 0x40, 0, s.ttl, 6, 0, 0)
		ip = append(append(ip, src...), dst...)
		be.PutUint16(ip[10:], ^sum16(ip))
		b = append(b, ip...)
	}
	b = append(b, tcp...)
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

func sum16(b []byte) uint16 {
	var sum uint64
	if len(b)%2 == 1 {
		b = append(b[:len(b):len(b)], 0)
	}
	for ; len(b) > 0; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// arrival is a packet and when it came, in ns after the capture's start.
type arrival struct {
	at    int64
	frame []byte
	snap  int // captured bytes if not 0
}

func us(n int64) int64 { return n * 1000 }

func microseconds(n uint16) time.Duration { return time.Duration(n) * time.Microsecond }

// train is n segments of size bytes, every ns apart, with a counting IP ID and fixed timestamps.
func train(first seg, n, size int, start, every int64) []arrival {
	var list []arrival
	for i := range n {
		s := first
		s.seq += uint32(i * size)
		s.id += uint16(i)
		s.n = size
		if s.opts == nil {
			s.opts = timestamps(100)
		}
		list = append(list, arrival{at: start + int64(i)*every, frame: s.frame()})
	}
	return list
}

// capStart is the second the captures begin at.
const capStart = 1_700_000_000

// nanoPcap is a little-endian pcap with nanoseconds.
func nanoPcap(list []arrival) []byte {
	var records [][]byte
	for _, a := range list {
		data := a.frame
		if a.snap != 0 {
			data = data[:min(a.snap, len(data))]
		}
		records = append(records, pcapRecord(le, uint32(capStart+a.at/1e9), uint32(a.at%1e9), len(a.frame), data))
	}
	return pcapFile(le, 0xa1b23c4d, 1, records...)
}
