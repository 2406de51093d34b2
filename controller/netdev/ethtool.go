package netdev

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// ethtool is a socket for SIOCETHTOOL; the kernel acts in the network namespace that the socket was made in.
//
// The requests are made here and not by github.com/safchain/ethtool (0.7.0): it keeps the address of a buffer on the goroutine's
// stack as an integer while it calls on, so a stack that grows or shrinks meanwhile leaves the kernel writing to memory that
// belongs to somebody else. TestAnswersComeWhateverTheStack fails with it. It also takes the number of named features for the
// number of features.
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
	channelsSize  = 36 // struct ethtool_channels
	stringLen     = 32 // ETH_GSTRING_LEN
	setFeatures   = 4  // ETH_SS_FEATURES
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
	info, err := unix.IoctlGetEthtoolDrvinfo(e.fd, name)
	if err != nil {
		return ""
	}
	return cString(info.Driver[:])
}

type channels struct{ rx, tx, combined uint32 }

func (e *ethtool) channels(name string) (channels, error) {
	b := request(channelsSize, unix.ETHTOOL_GCHANNELS)
	if err := e.ioctl(name, b); err != nil {
		return channels{}, err
	}
	return channels{rx: word(b, 5), tx: word(b, 6), combined: word(b, 8)}, nil
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
