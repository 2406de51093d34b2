package flowtable

// ruleSet is what one profile says about the packets of one transport protocol. The engine (add.go, table.go, emit.go) finds
// flows, keeps references, time and order, and knows no field of a transport header; a rule set knows the fields, and keeps
// nothing but what it writes into the slot. docs/rules.md has every rule with its reason, and how to add a set.
//
// A set is stateless and shared by all ports. What the operator or the guest chose stands in the port. Its methods do not
// allocate and do not call the table. The engine calls them in this order:
//
//	admit   for every packet of sound structure that policy lets through
//	fits    when admit said join and the flow has an open superframe
//	start   when the packet opens a superframe
//	grow    when it joined one
//	write   when a frame that is not just the packet as it came leaves
type ruleSet interface {
	// tags tells whether frames with an 802.1Q tag may be merged under a configuration.
	tags(c *PortConfig) bool

	// admit judges a packet beside its flow: verifies its checksums, and says what may be done with it. s is the flow's open
	// superframe, nil if there is none. When a packet may join, admit has filled w with what fits and start compare.
	admit(pt *port, s *slot, p *Packet, w *words) judgement

	// fits tells why a packet cannot join the superframe in s, or open. The engine itself checks the length.
	fits(pt *port, s *slot, o *origin, p *Packet, w *words) Reason

	// start fills the fields of s that are the rules' own from its first packet. It tells why nothing can follow, or open.
	start(pt *port, s *slot, p *Packet, w *words) Reason

	// grow brings a packet that joined into s, one that is absorbed too. It tells why nothing can follow it, or open. The
	// engine counts segments, lengths and references before it.
	grow(pt *port, s *slot, p *Packet, w *words) Reason

	// write makes the headers in o.head those of the frame in sf, which has all packets of s, and fills in the virtio_net_hdr.
	write(pt *port, sf *Superframe, s *slot, o *origin)
}

// judgement is what admit says of a packet.
type judgement struct {
	do       action
	reason   Reason // leave: why; joinOnly: why it leaves alone if nothing is open
	verified bool   // the checksums are right: DATA_VALID may be claimed if it leaves alone
	late     uint16 // then if not 0: but for the payload's sum, see Superframe.Sums
}

// action is what may be done with a packet.
type action uint8

const (
	leave    action = iota // close the flow and leave alone behind it
	absorb                 // vanish in the open superframe: it has no payload
	join                   // join the open superframe, or open one
	joinOnly               // join the open superframe, or leave alone: nothing could follow it
)

// rulesOf returns the rule set in force under a configuration.
func rulesOf(c *PortConfig) ruleSet {
	if c.Profile == RSC && c.RSCExt { // legal only where RSC_EXT was negotiated (rules.md, "Which profile is in force")
		return &rscRules{}
	}
	return &groRules{}
}
