// Package survey describes a machine for people who do not have it: kernel, processor, memory, what virtualises it, devices, NICs and their
// drivers, what doctor finds, how fast memory is copied and summed. It changes nothing.
//
// It has three parts. [Gather] looks. [Report.Write] lays out what was seen as Markdown, for its owner to read before he sends it. All that it
// writes goes through a [Scrubber], which knows the names that this machine has for things and the forms of addresses: no MAC or IP
// address, no name of a host, user, VM or interface, no UUID and no path of a user is in the result, whoever brought it in.
package survey
