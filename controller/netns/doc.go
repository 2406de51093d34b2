// Package netns finds, opens and enters network namespaces. A named one is what `ip netns` makes of it: a bind mount of the
// namespace's nsfs file under [Dir].
//
// # Threads
//
// A namespace belongs to a thread. [NS.Do] therefore runs its function on a goroutine of its own that is locked to its
// thread, and goes back before the thread is given to anybody else; a thread that could not go back ends with its
// goroutine. Sockets keep the namespace they were made in for life, so "open in Do, use anywhere" is the usual way.
// What does not follow is a goroutine started inside Do: it runs on another thread, in the process's own namespace.
package netns
