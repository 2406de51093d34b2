// Package xsk is an AF_XDP socket: a UMEM, its four rings, and the calls that bind and wake it.
//
// The UMEM is memory shared with the kernel, cut into chunks of one size. Chunks travel:
//
//	pool --Refill--> fill ring --kernel--> RX ring --Recv--> caller --Free--> pool
//	pool --AllocTx--> caller --Send--> TX ring --kernel--> completion ring --Flush--> pool
//
// With Config.Frames a frame may be longer than a chunk (multi-buffer): it comes in several, and is put together in a buffer that lies
// behind the chunks.
//
// Memory and socket outlive the process when somebody else holds their descriptors (Parts): the chunks and a word for each of
// them that says who has it lie in memory files, and Adopt goes on from there, whenever the owner died. After a crash
//
//	frames in the RX ring                come
//	frames that the owner had taken      are lost, and their chunks are in the pool again
//	frames published to be sent          are sent
//	frames queued and not published      are lost: Publish before you tell anybody that they are on their way
//
// The pool is last in, first out, so a small working set stays in the CPU's cache however large the UMEM is. Each ring has
// one producer and one consumer, and each index has one writer: the writer stores it with release, the reader loads it
// with acquire, and both keep a cached copy so that shared lines are touched once per burst.
//
// A Socket is used by one goroutine. Nothing on the data path allocates, and no call but Flush enters the kernel.
//
// The rings work on plain slices; the tests run them without a kernel.
package xsk
