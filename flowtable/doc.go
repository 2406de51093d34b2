// Package flowtable merges consecutive TCP segments of a flow into superframes, and cuts superframes into segments again.
//
// A Table holds, for every flow, at most one open superframe: references to the memory of the packets, never copies. It is
// told of time and of packets by its caller and gives frames to an Output. The rules are those of the Linux kernel's GRO
// where they are lossless (profile gro: cutting a superframe at gso_size gives back the packets bit for bit), or Microsoft's
// for receive segment coalescing (profile rsc). docs/rules.md has every rule with its reason; "row x" in a comment means the row
// x there.
//
// # Order of the checks
//
// The first that applies gives the reason. Of a packet whose addresses and TCP ports can be read, whatever is wrong with it,
// the flow is closed first, so no packet overtakes an older one of its flow.
//
//  1. input that is a superframe or has a partial checksum by the caller's knowledge
//  2. the structural verdict of package packet; where ports are out of reach, every flow between the addresses is closed
//  3. policy: coalescing off, family off, not negotiated, excluded port, tag
//  4. SYN, RST, URG
//  5. checksums: IPv4 header, TCP (partial, bad), not canonical (gro)
//  6. no payload: FIN; window update (rsc); dup_ack, window_update, pure_ack, empty
//  7. CWR (unless rsc with GUEST_ECN), no ACK; rsc: FIN, reserved flags, options other than timestamps
//  8. gro, nothing held: PSH, FIN
//  9. what must be equal: MACs, tag, flow label, DSCP, ECN, TTL, DF, TCP flags, urgent pointer, acknowledgement, window,
//     options
//  10. sequence, IPv4 ID, size, length limit
//
// The engine does 1 to 3, and the length limit of 10; the rest is the rule set of the profile (rules.go). A packet that got so far
// is merged. Then gro closes the superframe if the segment was shorter than the first, had PSH, or had FIN, in this order. Both
// profiles close it when it has as many segments as allowed.
//
// # Reasons
//
// A frame has one reason: why it left when it did. A packet that closes a flow gives its reason to what was held, and takes
// it along if it leaves alone. A packet that found no second one before its superframe was closed counts as passed under
// the reason for which it was closed. See Ledger for how the counts add up.
//
// # Accounts
//
// The table counts what comes in and what it holds. It does not count what becomes of a frame, as that is decided behind it:
// every frame carries an Entry, which the Output books in the port's Ledger once, when it has delivered or dropped the frame.
//
// # Hold
//
// With a hold, a superframe leaves when it is closed, and at the latest when its first packet has waited for that long.
// With hold 0 everything of a port leaves in the order of first packets, at the latest at EndBurst: what is closed waits
// behind older ones that are still open.
//
// An adaptive hold is found out for each superframe, up to the same bound, by what its flow and its port gained from the holds before:
// adapt.go. What is not held leaves at EndBurst, for reason burst_end, in no order with other flows'.
//
// # Memory
//
// Slots, references and scratch space are allocated by New and bounded by Config. When slots or references run out, the
// oldest superframe of all leaves, for reason pressure.
package flowtable
