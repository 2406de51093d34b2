package xsk

import "fmt"

// owners says of each chunk who has it, in memory that survives the process: 0 for us (pool, caller), else the ring by which
// the kernel got it and the index of its entry there. With the rings' own indices a process that comes after a crash knows
// from it which chunks are its own; what the kernel does with a chunk meanwhile (driver, RX ring, completion ring) changes
// nothing here.
//
// Only the owner's thread writes the words, and only the next owner reads them, after this one is gone. So plain stores do:
// a process is killed between two instructions, and all stores before them are seen. What counts is their order:
//
//	put:  word, entry, producer index      a word of an entry that was not published is of a chunk that was not given
//	take: word, consumer index             an entry that was not released is the kernel's, whatever the word says
//
// A chunk is put again only after the entry that brought it was released, so no entry ever names a chunk that was put since.
type owners []uint64

// The rings by which a chunk goes to the kernel, above the 32 bits of the index.
const (
	inFill uint64 = 1 << 32
	inTX   uint64 = 2 << 32
)

// settle says which chunks are the kernel's and how many of those were sent, after the last owner of the memory has gone. It
// clears the words of entries that were never published. The kernel may be at work meanwhile. Error: ErrParts.
func (s *Socket) settle() (kernels []bool, sent int, err error) {
	for _, r := range []struct {
		name string
		x    *index
	}{{"RX", &s.rx.index}, {"TX", &s.tx.index}, {"fill", &s.fill.index}, {"completion", &s.comp.index}} {
		if n := r.x.cachedP - r.x.cachedC; n > r.x.size {
			return nil, 0, fmt.Errorf("%s ring of %d entries: %d are in it: %w", r.name, r.x.size, n, ErrParts)
		}
	}
	u := s.umem
	kernels = make([]bool, len(u.owner))
	for i, word := range u.owner {
		ring := &s.fill.index
		switch word &^ 0xffffffff {
		case inFill:
		case inTX:
			ring = &s.tx.index
		default:
			if word != 0 {
				return nil, 0, fmt.Errorf("chunk %d: owner %#x: %w", i, word, ErrParts)
			}
			continue
		}
		// At most a ring of entries can be ahead of the producer index; a chunk that the kernel keeps while nearly 2^32 others
		// pass by there is not.
		if ahead := uint32(word) - ring.cachedP; ahead < ring.size {
			continue
		}
		kernels[i] = true
		if ring == &s.tx.index {
			sent++
		}
	}
	// Entries that wait for us: their words may be cleared already.
	for at := s.rx.cachedC; at != s.rx.cachedP; at++ {
		i := s.rx.entries[at&s.rx.mask].addr >> u.shift
		if i >= uint64(len(kernels)) || u.owner[i] != 0 && u.owner[i]&inFill == 0 {
			return nil, 0, fmt.Errorf("RX ring: chunk %d was not given to receive into: %w", i, ErrParts)
		}
		kernels[i] = true
	}
	for at := s.comp.cachedC; at != s.comp.cachedP; at++ {
		i := s.comp.entries[at&s.comp.mask] >> u.shift
		if i >= uint64(len(kernels)) || u.owner[i] != 0 && u.owner[i]&inTX == 0 {
			return nil, 0, fmt.Errorf("completion ring: chunk %d was not sent: %w", i, ErrParts)
		}
		if !kernels[i] {
			sent++
		}
		kernels[i] = true
	}
	for i, is := range kernels {
		if !is { // the index of an entry that was not published is another's soon
			u.owner[i] = 0
		}
	}
	return kernels, sent, nil
}
