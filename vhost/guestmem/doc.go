// Package guestmem maps the memory of a guest, as a vhost-user front-end describes it, and turns guest
// addresses into checked byte slices.
//
// Three kinds of address meet here: guest physical addresses (GPA) in descriptors, the front-end's own virtual
// addresses (UVA) in ring addresses, and the slices that we get from mapping. A [Table] never changes: adding or
// removing a region makes a new one that shares the mappings, which are counted. So readers may translate without a
// lock while the control side prepares the next table. Whoever keeps slices has a hold on the table ([Table.Retain]), and
// with the last hold the memory is unmapped: a copy that races with unmapping would be a crash or, where another guest's
// memory has been mapped there since, damage to that guest.
//
// A mapping keeps its file open, so that a successor of this process can map it again: one descriptor for each distinct region, which
// counts against RLIMIT_NOFILE, and in the [Budget].
//
// The memory belongs to somebody else. It changes while we look at it, and if its file is cut short under us, touching
// it raises SIGBUS: the control side reads and writes it inside [Table.Touch], which makes an error of that, and the data
// path runs under debug.SetPanicOnFault and recovers. Nothing else in this package touches mapped bytes.
package guestmem
