// Package survey describes a machine for people who do not have it: kernel, processor, memory, what virtualises it, devices, NICs and their
// drivers, what doctor finds, how fast memory is copied and summed. It changes nothing.
//
// It has three parts. [Gather] looks. [Report.Write] lays out what was seen as Markdown, for its owner to read before he sends it. All texts
// of it but the version of rscctl go through a [Scrubber]. That takes out the names that it was given (see [Names]: of the host, users, VMs
// and interfaces) and what has the form of a MAC or IP address, a UUID, a mail address, a host's name in a public or a usual private domain, or
// a path that is not the same on every machine. It cannot know a name that has no such form and stands in no list: the suffix that somebody gave
// his kernel's version, or the name of a foreign XDP program, is written as it is. So the file is to be read before it is sent.
package survey
