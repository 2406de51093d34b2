// Command bench measures the product: what a segment costs in each package beside its floor, and the whole path in the demo's topology,
// beside the kernel's own way and, where their programs are, others'. It writes a result as JSON and Markdown, has tools/benchplot draw it,
// and renews the figures that README.md and docs/performance.md quote.
//
//	go run ./test/bench [-all] [-repeats N] [-round D] [-out FOLDER]
//	go run ./test/bench -rows REGEXP       the rows of these names alone, printed; one that names none is an error
//	go run ./test/bench -quote             the documents anew from the result that is there
//	go run ./test/bench -wire eth0,eth1 -rows PATTERN     on two NICs with a wire between them, not on a veth pair
//
// Everything that is compared runs in turn, and again, so that a machine that changes its speed does so for all; a figure is
// a minimum, a median and a maximum of the repeats. Ratios are of one repeat each.
//
// Without root the whole path cannot be measured: the rest is, nothing is written, and the exit code is 1.
package main
