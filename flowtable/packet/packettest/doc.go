// Package packettest builds frames for tests: a TCP packet is one struct literal whose zero value is a plausible packet, so
// that a row of a table is one line and names only what is special about it. Checksums come from code of its own, word by
// word as in RFC 1071, so that a test does not check the product with the product.
//
//	packettest.TCP{V6: true, Seq: 100, Len: 1448, Opts: packettest.Timestamps(1, 2)}.Frame()
//
// Payload is a function of the sequence number (see Pattern): whatever carries the bytes from 100 to 200 of a stream can be
// compared without knowing how it was cut.
package packettest
