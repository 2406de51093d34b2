package netdev

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// ethtool is a socket for SIOCETHTOOL; the kernel acts in the network namespace that the socket was made in.
type ethtool struct{ fd int }

func openEthtool() (*ethtool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		// A kernel without IPv4 in the namespace still has packet sockets.
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("ethtool: socket: %w", err)
	}
	return &ethtool{fd: fd}, nil
}

func (e *ethtool) close() error { return unix.Close(e.fd) }

// Every request is one buffer in host byte order whose first word is the command; the kernel writes the answer into it.
// Layouts are those of include/uapi/linux/ethtool.h.
const (
	drvInfoSize   = 196 // struct ethtool_drvinfo
	channelsSize  = 36  // struct ethtool_channels
	stringLen     = 32  // ETH_GSTRING_LEN
	setFeatures   = 4   // ETH_SS_FEATURES
	maxFeatures   = 1024
	gFeatureBlock = 16 // struct ethtool_get_features_block: available, requested, active, never_changed
	sFeatureBlock = 8  // struct ethtool_set_features_block: valid, requested
)

func request(size int, cmd uint32) []byte {
	b := make([]byte, size)
	binary.NativeEndian.PutUint32(b, cmd)
	return b
}

func word(b []byte, i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }

func putWord(b []byte, i int, v uint32) { binary.NativeEndian.PutUint32(b[4*i:], v) }

// driver is the driver's name, "" if the interface has none to tell.
func (e *ethtool) driver(name string) string {
	b := request(drvInfoSize, unix.ETHTOOL_GDRVINFO)
	if e.ioctl(name, b) != nil {
		return ""
	}
	return cString(b[4:36])
}

type channels struct{ maxRx, maxCombined, rx, tx, other, combined uint32 }

func (e *ethtool) channels(name string) (channels, error) {
	b := request(channelsSize, unix.ETHTOOL_GCHANNELS)
	if err := e.ioctl(name, b); err != nil {
		return channels{}, err
	}
	return channels{maxRx: word(b, 1), maxCombined: word(b, 4), rx: word(b, 5), tx: word(b, 6), other: word(b, 7), combined: word(b, 8)}, nil
}

func (e *ethtool) setChannels(name string, c channels) error {
	b := request(channelsSize, unix.ETHTOOL_SCHANNELS)
	putWord(b, 5, c.rx)
	putWord(b, 6, c.tx)
	putWord(b, 7, c.other)
	putWord(b, 8, c.combined)
	return e.ioctl(name, b)
}

// featureNames are the kernel's names of the feature bits, by bit. Unnamed bits are "".
func (e *ethtool) featureNames(name string) ([]string, error) {
	// struct ethtool_sset_info: cmd, reserved, sset_mask (u64), data[]
	info := request(20, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<setFeatures)
	if err := e.ioctl(name, info); err != nil {
		return nil, err
	}
	n := int(word(info, 4))
	if n == 0 || n > maxFeatures {
		return nil, fmt.Errorf("%d feature names: %w", n, ErrNoFeature)
	}
	// struct ethtool_gstrings: cmd, string_set, len, data[]
	b := request(12+n*stringLen, unix.ETHTOOL_GSTRINGS)
	putWord(b, 1, setFeatures)
	putWord(b, 2, uint32(n))
	if err := e.ioctl(name, b); err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		names[i] = cString(b[12+i*stringLen:][:stringLen])
	}
	return names, nil
}

// features is the answer of ETHTOOL_GFEATURES for n bits: words of 32 bits each.
func (e *ethtool) features(name string, n int) ([]byte, error) {
	blocks := (n + 31) / 32
	b := request(8+blocks*gFeatureBlock, unix.ETHTOOL_GFEATURES)
	putWord(b, 1, uint32(blocks))
	if err := e.ioctl(name, b); err != nil {
		return nil, err
	}
	return b[8:], nil
}

// setFeatures asks for values of some of n bits.
func (e *ethtool) setFeatures(name string, n int, want map[int]bool) error {
	blocks := (n + 31) / 32
	b := request(8+blocks*sFeatureBlock, unix.ETHTOOL_SFEATURES)
	putWord(b, 1, uint32(blocks))
	for bit, on := range want {
		i, m := 2+2*(bit/32), uint32(1)<<(bit%32)
		putWord(b, i, word(b, i)|m)
		if on {
			putWord(b, i+1, word(b, i+1)|m)
		}
	}
	return e.ioctl(name, b)
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
