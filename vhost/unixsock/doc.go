// Package unixsock makes listening Unix sockets with an owner and a mode, for a process that runs as root beside other people's.
//
// A socket's file is a name in a folder, and a name can be changed between two looks at it: chmod(2) of a new socket then changes
// another file, unlink(2) of a stale one removes a live one. So nothing here acts on a path twice:
//
//   - The folder is opened once, component by component, and all that follows is relative to its descriptor. Whoever may
//     write one of these folders could put a socket of his own in our place, and a front-end that connects to it hands him its
//     guest's memory: a folder that others than root, ourselves and the socket's owner may write is refused.
//   - The socket is bound in a new folder of mode 0700, where nobody else reaches it, gets its mode and owner there, listens, and
//     is then moved into place in one step: nobody ever sees it with another mode, or before it accepts connections.
//   - A stale file is exchanged for the new one (RENAME_EXCHANGE) and looked at again where nobody else reaches it, before it
//     is removed. Stale is only what refuses connections: a full queue (EAGAIN) is a sign of life.
//   - On Close the file is moved out of the way first and removed only if it is ours.
package unixsock

import "errors"

var (
	// ErrPath: no path of a file, such as "" or an abstract name.
	ErrPath = errors.New("not a path")
	// ErrPathTooLong: sun_path has room for 107 bytes (unix(7)).
	ErrPathTooLong = errors.New("socket path longer than 107 bytes")
	// ErrNoFolder: the folder of the socket is missing, or something on the way is no folder.
	ErrNoFolder = errors.New("folder of the socket does not exist")
	// ErrFolder: somebody else may write a folder on the way to the socket.
	ErrFolder = errors.New("others may write the folder")
	// ErrNotSocket: the path exists and is something else, a link for example.
	ErrNotSocket = errors.New("path exists and is not a socket")
	// ErrInUse: somebody listens there, or may do so.
	ErrInUse = errors.New("somebody listens on that socket")
)
