package vring

import (
	"errors"
	"fmt"
)

// Errors about a ring's memory: the ring never starts.
var (
	ErrRingSize  = errors.New("ring: size is not a power of two from 1 to 32768")
	ErrRingShort = errors.New("ring: memory shorter than the ring")
	ErrAlign     = errors.New("ring: descriptor table not aligned to 16 bytes or used ring not to 4")
	// ErrAvailAlign: the standard allows 2 bytes, but its index can then not be read atomically; no known guest does it.
	ErrAvailAlign = errors.New("ring: avail ring not aligned to 4 bytes, which this device needs")
	ErrByteOrder  = errors.New("ring: big-endian hosts are not supported")
	ErrBase       = errors.New("ring: base does not fit the ring's format")
)

// Classes of a driver's misbehaviour; every error of [Device.Next] wraps one of them.
var (
	ErrBadIndex    = errors.New("ring: bad index")
	ErrBadChain    = errors.New("ring: bad descriptor chain")
	ErrOutOfRegion = errors.New("ring: buffer outside of guest memory")
)

// What exactly a driver did. They hold no numbers, because those would be the guest's.
var (
	ErrAvailJump       = fmt.Errorf("%w: avail.idx moved by more than the ring's size", ErrBadIndex)
	ErrHeadRange       = fmt.Errorf("%w: head beyond the descriptor table", ErrBadIndex)
	ErrNextRange       = fmt.Errorf("%w: next beyond the descriptor table", ErrBadIndex)
	ErrLoop            = fmt.Errorf("%w: it loops", ErrBadChain)
	ErrIndirectOff     = fmt.Errorf("%w: indirect table without INDIRECT_DESC", ErrBadChain)
	ErrIndirectLength  = fmt.Errorf("%w: indirect table's length is not a multiple of 16", ErrBadChain)
	ErrIndirectTooLong = fmt.Errorf("%w: indirect table is too long", ErrBadChain)
	ErrIndirectNested  = fmt.Errorf("%w: indirect table inside an indirect table", ErrBadChain)
	ErrIndirectNext    = fmt.Errorf("%w: descriptor is both indirect and chained", ErrBadChain)
	ErrOrder           = fmt.Errorf("%w: readable buffer after a writable one", ErrBadChain)
	ErrZeroLength      = fmt.Errorf("%w: buffer of length 0", ErrBadChain)
	ErrChainTooLong    = fmt.Errorf("%w: more than 4294967295 bytes", ErrBadChain)
	ErrTooManySegments = fmt.Errorf("%w: too many pieces", ErrBadChain)
	ErrReadable        = fmt.Errorf("%w: readable buffer where only writable ones belong", ErrBadChain)
	ErrWritable        = fmt.Errorf("%w: writable buffer where only readable ones belong", ErrBadChain)
)

// Errors of [Driver].
var (
	ErrRingFull   = errors.New("ring: no free descriptors")
	ErrBadBuffers = errors.New("ring: chain is empty, too long, has an empty buffer or a readable one after a writable one")
	ErrNoArea     = errors.New("ring: memory for indirect tables is too short or misaligned")
	ErrUsedJump   = errors.New("ring: used.idx moved by more than is outstanding")
	ErrUsedID     = errors.New("ring: device returned a chain that it does not have")
	ErrUsedLen    = errors.New("ring: device wrote more than the chain holds")
)
