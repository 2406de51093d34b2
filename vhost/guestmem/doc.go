// Package guestmem maps the memory of a guest, as a vhost-user front-end describes it, and turns guest
// addresses into checked byte slices.
//
// Three kinds of address meet here: guest physical addresses (GPA) in descriptors, the front-end's own virtual
// addresses (UVA) in ring addresses, and the slices that we get from mapping. A [Table] never changes: adding or
// removing a region makes a new one that shares the mappings, which are counted. So readers may translate without a
// lock while the control side prepares the next table; the control side must keep a table open until its last reader
// is done, because a copy that races with unmapping is a crash or silent damage.
//
// The memory belongs to somebody else. It changes while we look at it, and if its file is cut short under us, touching
// it raises SIGBUS: a goroutine that reads or writes it must run under debug.SetPanicOnFault and recover. Nothing in
// this package touches mapped bytes.
package guestmem
