package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Station is an address in a VLAN (0: none).
type Station struct {
	MAC  [6]byte
	VLAN uint16
}

// Announce tells the switches by which of their ports stations are now: one RARP request of each (RFC 903), to all, as QEMU sends them after
// a migration. It asks for nothing that anybody answers. The frames leave by the interface with that index, in the calling thread's
// namespace.
func Announce(ifindex int, stations []Station) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce: socket: %w", err)
	}
	var errs []error
	to := &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: htons(etherRARP)}
	for _, s := range stations {
		if err := unix.Sendto(fd, rarp(s), 0, to); err != nil {
			errs = append(errs, fmt.Errorf("announce: %x: %w", s.MAC, linkErrno(err)))
		}
	}
	return errors.Join(append(errs, unix.Close(fd))...)
}

const (
	etherRARP  = 0x8035
	rarpLength = 60 // the shortest frame of Ethernet, without its check sequence
)

// rarp is a reverse request: who has my MAC address?
func rarp(s Station) []byte {
	f := make([]byte, 0, rarpLength+4)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, s.MAC[:]...)
	if s.VLAN != 0 {
		f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, unix.ETH_P_8021Q), s.VLAN)
	}
	f = binary.BigEndian.AppendUint16(f, etherRARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 3) // Ethernet, IPv4, their lengths, reverse request
	f = append(f, s.MAC[:]...)
	f = append(f, 0, 0, 0, 0)
	f = append(f, s.MAC[:]...)
	f = append(f, 0, 0, 0, 0)
	return append(f, make([]byte, max(0, rarpLength-len(f)))...)
}
