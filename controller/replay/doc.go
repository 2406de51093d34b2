// Package replay drives the flow table from a capture file instead of a wire: no privileges, no VM, the capture's own
// timestamps as the clock. It is the same table with the same rules as the data path, so what replay prints is what a
// guest would have received.
//
// # Clock
//
// The clock is the capture's. Where a timestamp lies before the one of an earlier packet, the clock stands. Deadlines that
// pass between two packets fire at their own time, before the later packet is looked at. With a hold of 0, packets with
// the same time form one burst, as packets do that a worker takes from its ring in one go.
//
// # VLANs
//
// As a rule every frame of the capture goes to the table as it is. With Options.VLAN the port is what `attach --vlan` makes: it gets
// the frames of that VLAN, and their tag is taken off in front of the table, so tags of different priority merge. The others are
// dropped for reason "vlan_foreign"; on a wire the host gets them.
//
// # Memory
//
// A capture may have any size. What is kept of it are the packets in open slots, at most MaxHeld packets and maxHeldBytes
// bytes; when more are open they leave for reason "pressure", as they do on the data path.
package replay
