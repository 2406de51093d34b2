// Package netns makes, opens and enters network namespaces the way `ip netns` does: a name is a bind mount of the
// namespace's nsfs file under [Dir], so `ip netns list` and `nsenter --net=` see ours and we see theirs.
//
// # Threads
//
// A namespace belongs to a thread. [NS.Do] therefore runs its function on a goroutine of its own that is locked to its
// thread, and goes back before the thread is given to anybody else; a thread that could not go back ends with its
// goroutine. Sockets keep the namespace they were made in for life, so "open in Do, use anywhere" is the usual way.
// What does not follow is a goroutine started inside Do: it runs on another thread, in the process's own namespace.
//
// # Why not `ip netns exec`
//
// It remounts /sys in a private mount namespace, and with it the BPF file system: pins made there fail or vanish with
// that mount namespace. [NS.Start] changes the network namespace only.
package netns
