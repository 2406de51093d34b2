package xsk

import "fmt"

// owners says of each chunk who has it, in memory that survives the process: the pool, the caller, or the kernel, and then by
// which ring it got the chunk and the index of the entry there. With the rings' own indices a process that comes after a crash
// knows from it which chunks are its own. What the kernel does with a chunk meanwhile (driver, RX ring, completion ring)
// changes nothing here.
//
// Only the owner's thread writes the words, and only the next owner reads them, after this one is gone. So plain stores do:
// a process is killed between two instructions, and all stores before them are seen. What counts is their order:
//
//	put:  word, entry, producer index      a word of an entry that was not published is of a chunk that was not given
//	take: word, consumer index             an entry that was not released is the kernel's, whatever the word says
//
// A chunk is put again only after the entry that brought it was released, so no entry ever names a chunk that was put since.
type owners []uint64

// The words. Those of the kernel's chunks have the index in their low half.
const (
	inPool uint64 = 0
	inFill uint64 = 1 << 32 // the kernel has it to receive into
	inTX   uint64 = 2 << 32 // the kernel has it to send
	inHand uint64 = 3 << 32 // received, completed or allocated, and not given back
)

const indexBits = 1<<32 - 1

// settle makes the account after the last owner of the memory has gone: what it had in hand is in the pool, and every chunk
// that is the kernel's says so. It returns how many of those were sent. The kernel may be at work meanwhile, and a crash in
// settle is as good as one before. Nothing is written when it fails. Error: ErrParts.
func (o owners) settle(shift uint, rx, tx *descRing, fill, comp *addrRing) (sent int, err error) {
	for _, r := range []struct {
		name string
		x    *index
	}{{"RX", &rx.index}, {"TX", &tx.index}, {"fill", &fill.index}, {"completion", &comp.index}} {
		if n := r.x.cachedP - r.x.cachedC; n > r.x.size {
			return 0, fmt.Errorf("%s ring of %d entries: %d are in it: %w", r.name, r.x.size, n, ErrParts)
		}
	}
	now := make(owners, len(o))
	for i, word := range o {
		switch ring := word &^ indexBits; {
		case word == inPool, ring == inHand:
		case ring == inFill && fill.published(uint32(word)), ring == inTX && tx.published(uint32(word)):
			now[i] = word
		case ring != inFill && ring != inTX:
			return 0, fmt.Errorf("chunk %d: owner %#x: %w", i, word, ErrParts)
		}
	}
	// Entries that wait for us are the kernel's still, and their words may say that we have them.
	waits := func(what string, addr, ring uint64, last uint32) error {
		i := addr >> shift
		if i >= uint64(len(o)) || o[i]&^indexBits != ring && o[i] != inHand {
			return fmt.Errorf("%s ring: chunk %d is not the kernel's: %w", what, i, ErrParts)
		}
		if now[i] == inPool {
			now[i] = ring | uint64(last)
		}
		return nil
	}
	for at := rx.cachedC; at != rx.cachedP; at++ {
		if i := rx.entries[at&rx.mask].addr >> shift; i < uint64(len(o)) && (o[i] == inPool || o[i]&^indexBits == inTX) {
			continue // a driver's fault, which Recv passes over
		}
		if err := waits("RX", rx.entries[at&rx.mask].addr, inFill, fill.cachedP-1); err != nil {
			return 0, err
		}
	}
	for at := comp.cachedC; at != comp.cachedP; at++ {
		if err := waits("completion", comp.entries[at&comp.mask], inTX, tx.cachedP-1); err != nil {
			return 0, err
		}
	}
	for i, word := range now {
		o[i] = word // of an entry that was not published too: its index is another's soon
		if word&^indexBits == inTX {
			sent++
		}
	}
	return sent, nil
}
