package datapath

import (
	"sync/atomic"
	"time"
)

// Bounds of what is learned of the stations on the host's side.
const (
	stationWays   = 8
	stationSets   = 256
	stationAge    = 5 * time.Minute // as a bridge of Linux
	stationFresh  = time.Second     // a station that speaks is written down no more often
	stationIsUsed = 1 << 63
)

// Stations are the addresses that are reached by the host: its own, and those that the worker which reads what the host sends has seen as
// sources, behind a bridge for example. All workers of an interface share them, without a lock: one writes most of the time, all read for
// each frame of a VM. At most 2,048 are known; of a flood of made-up ones the latest. Times are by the workers' clock.
type Stations struct {
	own  atomic.Pointer[map[[macLen]byte]bool]
	seen [stationSets]stationSet
}

type stationSet struct {
	key [stationWays]atomic.Uint64 // 0: free
	at  [stationWays]atomic.Int64  // when it was a source, ns
}

// stationKey packs an address, which is never 0 so.
func stationKey(a *Addr) uint64 {
	m := &a.MAC
	return stationIsUsed | uint64(a.VLAN&vlanID)<<48 | uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

// set is where an address may be.
func (s *Stations) set(key uint64) *stationSet {
	return &s.seen[key*0x9e3779b97f4a7c15>>56]
}

// SetOwn replaces the host's own addresses: those of its interfaces on top of the uplink. They are the host's in every VLAN, and never given up.
func (s *Stations) SetOwn(all [][6]byte) {
	own := make(map[[macLen]byte]bool, len(all))
	for _, mac := range all {
		own[mac] = true
	}
	s.own.Store(&own)
}

// isOwn reports whether an address is one of the host's own.
func (s *Stations) isOwn(mac [macLen]byte) bool {
	own := s.own.Load()
	return own != nil && (*own)[mac]
}

// has reports whether a station is reached by the host.
func (s *Stations) has(a Addr, now int64) bool {
	if s.isOwn(a.MAC) {
		return true
	}
	key := stationKey(&a)
	set := s.set(key)
	for i := range set.key {
		if set.key[i].Load() == key {
			return now-set.at[i].Load() < int64(stationAge)
		}
	}
	return false
}

// learn notes that a station was seen behind the host.
func (s *Stations) learn(a Addr, now int64) {
	key := stationKey(&a)
	set := s.set(key)
	oldest := 0
	for i := range set.key {
		switch set.key[i].Load() {
		case key:
			if now-set.at[i].Load() > int64(stationFresh) {
				set.at[i].Store(now)
			}
			return
		case 0:
			set.at[i].Store(now)
			set.key[i].Store(key)
			return
		}
		if set.at[i].Load() < set.at[oldest].Load() {
			oldest = i
		}
	}
	set.at[oldest].Store(now)
	set.key[oldest].Store(key)
}

// giveUp notes that a station is on the wire by now, wherever it was before. The host's own stay.
func (s *Stations) giveUp(a Addr) {
	key := stationKey(&a)
	set := s.set(key)
	for i := range set.key {
		if set.key[i].Load() == key {
			set.key[i].CompareAndSwap(key, 0)
		}
	}
}

// Learned are the addresses that were learned and are not too old.
func (s *Stations) Learned(now int64) (out []Addr) {
	for i := range s.seen {
		set := &s.seen[i]
		for n := range set.key {
			key := set.key[n].Load()
			if key == 0 || now-set.at[n].Load() >= int64(stationAge) {
				continue
			}
			a := Addr{VLAN: uint16(key>>48) & vlanID}
			for b := range a.MAC {
				a.MAC[b] = byte(key >> (40 - 8*b))
			}
			out = append(out, a)
		}
	}
	return out
}

// Learn notes stations that others have seen behind the host.
func (s *Stations) Learn(all []Addr, now int64) {
	for _, a := range all {
		s.learn(a, now)
	}
}
