// Package fdstore keeps descriptors where they survive the process that uses them: in systemd's descriptor store, or in a keeper,
// which is a process of ours that speaks the same protocol (sd_notify(3), sd_listen_fds(3)) and does nothing else.
//
// Store is the side of the process that works: it puts descriptors in under names and takes them out. After a crash the next process
// finds them with Inherited. Note is a small piece of memory, kept like any other descriptor, whose last content is found whole.
// Keep is the keeper.
package fdstore
