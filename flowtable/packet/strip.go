package packet

const addresses = 12 // bytes of both Ethernet addresses

// StripTag removes the outer 802.1Q tag as an access port does: the addresses move over it, in the frame's own memory. frame has
// such a tag and i is what the parser said of it; its offsets move with the frame, and what it said of a tag behind the outer one
// stays said. It returns the frame without the tag.
func StripTag(frame []byte, i *Info) []byte {
	copy(frame[tagLen:], frame[:addresses])
	i.Tagged, i.TCI = false, 0
	for _, off := range []*uint32{&i.L3, &i.L4, &i.Payload} {
		if *off >= tagLen {
			*off -= tagLen
		}
	}
	return frame[tagLen:]
}
