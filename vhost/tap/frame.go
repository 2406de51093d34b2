package tap

// MaxLen is the longest superframe in bytes, Ethernet included. One more, and the kernel cuts it into MTU frames without a
// word: a tap's tso_max_size is 65536 and a frame must stay below (net/core/dev.c, gso_features_check).
const MaxLen = 65535

const (
	ethLen  = 14
	tagLen  = 4
	tcpMin  = 20
	udpLen  = 8
	udpCsum = 6  // likewise, UDP's
	tcpCsum = 16 // where the checksum is, from the TCP header's first byte
)
