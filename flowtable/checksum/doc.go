// Package checksum computes the Internet checksum (RFC 1071) and what virtio needs of it. It does not know what the bytes
// mean.
//
// Sums are those of big-endian 16-bit words; an odd last byte is the high half of a word whose low half is 0. A sum of
// anything but zeros never folds to 0, so 0 and 0xffff are told apart as RFC 1624 asks.
//
// On amd64 with AVX2 long inputs are summed by vector code, and copied and summed in one pass (Scatter) by that or by AVX-512's; Sum and
// Scatter decide at run time. The portable code computes the same and is tested beside it.
package checksum
