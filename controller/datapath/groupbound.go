package datapath

import "time"

// What one VM's broadcast and multicast may cost the others, on each NIC queue that it sends by: a copy for the wire and one
// for every VM beside it. Copies are what is counted, so that however many VMs there are, all of them together bring one of
// them no more than groupRate a second.
//
//	VMs beside it   frames a second   at once
//	0               33,333            8,192
//	1               16,666            4,096
//	31              1,041             256
//	255             130               32
//
// That is far above what ARP, neighbour discovery, mDNS and DHCP of an honest VM need, and a quarter of what one VM sends when
// nobody stops it.
const (
	groupEvery = 30 * time.Microsecond // a copy, in the long run
	groupRate  = int(time.Second / groupEvery)
	groupBurst = 8192 // copies at once; what the last frame costs beyond them is owed
)

// groupBound is a token bucket, kept as the time at which it will be full again (the generic cell rate algorithm): nothing has
// to be done while nothing is sent.
type groupBound struct {
	full int64 // ns, by Worker.now
}

// admits reports whether a group frame may be copied now.
func (b *groupBound) admits(now int64) bool {
	return b.full-now < int64(groupBurst*groupEvery)
}

// charge books copies that were made.
func (b *groupBound) charge(now int64, copies int) {
	b.full = max(b.full, now) + int64(copies)*int64(groupEvery)
}
