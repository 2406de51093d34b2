// Package packet parses a frame from Ethernet to TCP: offsets, the flags of TCP, and a structural verdict. It knows nothing
// of flows and reads no payload. bpf/parse.h is its twin in C; a test runs both on the same frames.
//
// # Order of the checks
//
// The first check that fails gives the verdict. Lengths are those of the frame in hand, never of the wire.
//
//	Ethernet  fewer than 14 bytes                                          truncated
//	          type 0x8100, fewer than 4 bytes behind it                    truncated
//	          type 0x88a8, or 0x8100 behind a tag                          vlan_stack
//	          type neither 0x0800 nor 0x86dd                               not_ip
//	IPv4      fewer than 20 bytes                                          truncated
//	          version not 4, IHL below 5                                   malformed
//	          total length below the header's, or beyond the frame         malformed
//	          protocol not 6                                               not_tcp
//	          fragment offset not 0                                        fragment, never keyed
//	          MF                                                           fragment
//	          IHL above 5                                                  ip_options
//	          reserved flag                                                reserved_flag
//	IPv6      fewer than 40 bytes                                          truncated
//	          version not 6, payload length beyond the frame               malformed
//	          extension headers (hop-by-hop, routing, destination
//	          options, fragment) in front of something else                not_tcp
//	          fragment header with an offset                               fragment, never keyed
//	          fragment header with M, TCP behind it                        fragment
//	          extension headers in front of TCP                            ext_header
//	          more than 8 of them, whatever is behind                      ext_header, never keyed
//	TCP       fewer than 20 bytes within the IP length                     malformed
//	          data offset below 5 or beyond the IP length                  malformed
//	Trailer   frame longer than the IP packet and than 60 bytes (64 with
//	          a tag); up to there it is Ethernet's padding                 trailer
//
// A packet is keyed when addresses and TCP ports could be read, whatever its verdict: it belongs to a flow, so it must not
// overtake what is held of that flow. With a verdict of malformed Keyed is set only if the malformation is TCP's.
package packet
