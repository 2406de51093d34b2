package why

// word is what a reason means. It completes "... of the superframes ended because", "... of the packets passed alone because" or
// "... packets were dropped because".
type word struct {
	means string
	do    string // what to do about it, "" for nothing
}

// adaptiveWords are the reasons that mean something else where the hold adapts.
var adaptiveWords = map[string]word{
	"deadline":  {"the next segment did not come within the hold, which adapts", "nothing: a longer hold is taken as soon as it merges more and slows nothing down"},
	"burst_end": {"nothing would have come while they waited, so they do not wait", "nothing: the hold adapts, and tries again now and then"},
}

// %s in do is the VM's name.
const (
	nothing   = "nothing: small writes have nothing to gain"
	oneFlow   = "nothing: that is what the sender sends"
	onTheWire = "look for what changes packets on the way: a balancer, a router with two paths, a tunnel"
	damage    = "look for a bad cable, NIC or driver between the sender and here"
	shown     = "rscctl policy get %s"
	takesNone = "look in the guest: at an XDP program, at a kernel that 'rscctl doctor' names, and at what it forwards to; 'rscctl policy set %s --coalesce off' keeps it so"
	ours      = "a fault of ours: please report it"
)

// words has every reason of docs/counters.md.
var words = map[string]word{
	"psh":              {"the sender set PSH: the application's write ended there", nothing},
	"fin":              {"the connection ended", ""},
	"short":            {"a segment smaller than the others ended the train, as the last of a write does", nothing},
	"larger":           {"a segment larger than the first came: the sender's segment size changes", oneFlow},
	"gap":              {"a segment was missing before the next: loss or reordering on the way here", "look for loss before this host: 'ethtool -S' of the uplink, the switch's counters"},
	"retransmit":       {"a segment came again: the sender saw loss", "look for loss: 'nstat -az TcpRetransSegs' at the sender, and what the sentences about drops say here"},
	"ack_change":       {"the acknowledgement changed: data goes both ways in one connection", "nothing; profile rsc merges over it where the guest allows it"},
	"window_change":    {"the advertised window changed", "nothing; profile rsc merges over it where the guest allows it"},
	"tcp_flags_change": {"TCP flags changed within the train (congestion marks, above all)", oneFlow},
	"options_change":   {"TCP options changed, as the timestamp does each millisecond", "nothing; the slower the flow, the more often"},
	"urgent_pointer":   {"the urgent pointer was set", oneFlow},
	"ttl_change":       {"TTL or hop limit changed: the packets took different ways", onTheWire},
	"dscp_change":      {"the DSCP changed within the flow", onTheWire},
	"ecn_change":       {"a router marked congestion", "nothing: the mark must reach the guest with its packet"},
	"df_change":        {"the don't-fragment bit changed within the flow", oneFlow},
	"ip_id":            {"the IPv4 ID neither counted up nor stood still", onTheWire},
	"flow_label":       {"the IPv6 flow label changed", onTheWire},
	"mac_change":       {"an Ethernet address changed: the sender or a router behind it moved", onTheWire},
	"vlan_priority":    {"the VLAN priority changed within the flow", onTheWire},
	"max_bytes":        {"it was as long as a superframe may be", ""},
	"max_segments":     {"it had as many segments as --max-segments allows", "rscctl policy set %s --max-segments 0"},
	"deadline":         {"the next segment did not come within --hold", "a longer hold merges more and delays more: rscctl policy set %s --hold adaptive finds out how long"},
	"burst_end":        {"--hold is 0 and the burst was over", "rscctl policy set %s --hold adaptive"},
	"pressure":         {"the flow table or the packet buffers were full: the oldest goes first", "fewer flows at once, or more queues for the interface: ethtool -L"},
	"policy":           {"the policy changed", ""},
	"stop":             {"the guest's queue stopped or the VM was detached", ""},

	"not_ip":                {"they are no IP (ARP and the like)", ""},
	"not_tcp":               {"they are no TCP (UDP, QUIC, ICMP)", ""},
	"vlan_stack":            {"they carry more than one VLAN tag", ""},
	"vlan_tag":              {"they carry a VLAN tag and the profile merges untagged frames only", "rscctl policy set %s --profile gro"},
	"malformed":             {"their headers contradict themselves", damage},
	"truncated":             {"they were cut on the way", damage},
	"trailer":               {"bytes stand behind the IP packet", ""},
	"fragment":              {"they are IP fragments", "make the sender's MTU fit the path"},
	"ip_options":            {"they carry IP options", oneFlow},
	"ext_header":            {"they carry IPv6 extension headers", oneFlow},
	"reserved_flag":         {"a reserved bit of IP or TCP is set", oneFlow},
	"bad_ip_checksum":       {"their IP header's checksum is wrong", damage},
	"bad_tcp_checksum":      {"their TCP checksum is wrong: they are damaged", damage},
	"bad_udp_checksum":      {"their UDP checksum is wrong: they are damaged", damage},
	"zero_checksum":         {"their senders use no UDP checksum, so nobody can tell whether they are whole", oneFlow},
	"noncanonical_checksum": {"their checksum is right and written as 0xffff instead of 0, which a merged frame could not give back", ""},
	"partial_checksum":      {"their TCP checksum was never finished: the sender relies on a NIC that is not there", "switch the sender's off: ethtool -K DEV tx off at the other end of the veth, or attach with --fix-offloads"},
	"syn":                   {"they open connections", ""},
	"rst":                   {"they break connections off", ""},
	"urg":                   {"they carry urgent data", oneFlow},
	"cwr":                   {"they answer a congestion mark", ""},
	"no_ack":                {"they carry data without the ACK flag, which no kernel sends", onTheWire},
	"pure_ack":              {"they are acknowledgements without data: the VM is the sender here", ""},
	"dup_ack":               {"they are duplicate acknowledgements: what the VM sent was lost or reordered", "look for loss of what the VM sends"},
	"window_update":         {"they only announce a window", ""},
	"empty":                 {"they are TCP without data", ""},
	"gso_input":             {"they were merged before they came here", ""},
	"port_excluded":         {"their port is excluded by the policy", shown},
	"family_off":            {"the policy has their IP version off", shown},
	"policy_off":            {"the policy has coalescing off", "rscctl policy set %s --coalesce on"},
	"not_negotiated":        {"the guest's driver did not negotiate checksum and TSO for what it receives", "give the NIC guest_csum, guest_tso4, guest_tso6 and mrg_rxbuf (QEMU's default), and a driver in the guest that takes them: 'rscctl status' lists what was negotiated"},
	"guest_refuses":         {"the guest seemed to drop superframes, and got its packets one by one", takesNone},

	"guest_no_buffers": {"the guest gave no buffers, or rested: it does not keep up", "more vCPU or queue pairs for the VM, a longer ring ('ethtool -G' in the guest, rx_queue_size in QEMU)"},
	"port_down":        {"the VM's port was not running: it boots, reboots, or is disconnected", ""},
	"source_mac":       {"the VM sent from an address that is not its own", "if that is meant (VRRP, macvlan or a bridge in the guest), name the address: rscctl policy set %s --mac MAC,... (all further ones); if there are many, attach with --allow-spoof"},
	"vlan_foreign":     {"they carry a VLAN tag that is not the VM's", "the tags are the host's to set: take them off in the guest, or attach with the right --vlan"},
	"bad_length":       {"they are too long or too short for where they go", "make the MTU of the guest and of the uplink fit"},
	"control_frame":    {"they are for the switch (PAUSE, BPDU, LACP, LLDP), which a VM must not talk to", ""},
	"hairpin":          {"the VM sent them to itself", ""},
	"group_share":      {"the VM sends more broadcast and multicast than its share", "look in the guest for a loop or a scan"},
	"isolated":         {"the VM or the one beside it is isolated", "rscctl policy set %s --isolate off, and the same of the VM beside it, if they are to talk"},
	"source_ip":        {"the VM sent from an IP address that --ip does not name", "if it is the VM's own, name it: rscctl policy set %s --ip ADDR,... (all of them anew); of its link-local addresses only the one made of its MAC address is known by itself"},
	"source_arp":       {"the VM claimed by ARP an address that is not its own, or spoke an ARP that is none of IPv4", "if the address is the VM's own, name it: rscctl policy set %s --ip ADDR,...; otherwise look in the guest for ARP spoofing or a bridge"},
	"source_nd":        {"the VM claimed by IPv6 neighbour discovery an address that is not its own", "if the address is the VM's own, name it: rscctl policy set %s --ip ADDR,...; a guest with stable-privacy or temporary addresses needs its network named, or addr_gen_mode eui64"},
	"dhcp_server":      {"the VM answered DHCP clients, and a VM with --ip is no DHCP server", "look in the guest for a DHCP server (libvirt's, dnsmasq); one that is meant needs 'rscctl policy set %s --ip none'"},
	"router_advert":    {"the VM advertised itself as an IPv6 router, and a VM with --ip is none", "look in the guest for radvd, or IPv6 forwarding; a router that is meant needs 'rscctl policy set %s --ip none'"},
	"rate":             {"more came for the VM than its --rate-rx, and its queue of 50 ms was full", "nothing, if the rate is meant: the senders slow down by it; otherwise rscctl policy set %s --rate-rx RATE"},
	"ethertype":        {"they are neither IP nor ARP, and the VM is kept to its IP addresses", "a VM that has to speak something else (PPPoE, 802.1X) needs 'rscctl policy set %s --ip none'"},

	// Names of a virtqueue's own.
	"bad_header": {"the guest's virtio header contradicts what it negotiated", "update the guest's driver"},
	"too_short":  {"they are shorter than an Ethernet header", "update the guest's driver"},
	"too_long":   {"they are longer than any frame", "update the guest's driver"},
	"disabled":   {"the guest sent them on a queue that it has disabled", "update the guest's driver"},
}
