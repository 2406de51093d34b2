package xsk

// Chunks is where a UMEM's chunks are in memory, for one who looks at many frames and cannot afford a call for each. The zero Chunks has
// none.
type Chunks struct {
	mem    []byte
	inside uint64 // the bits of an address that count within a chunk: its size, a power of two, less one
}

// NewChunks returns the chunks of size bytes, a power of two, that fill mem.
func NewChunks(mem []byte, size int) Chunks { return Chunks{mem: mem, inside: uint64(size) - 1} }

// Memory is what the addresses of descriptors count in.
func (c *Chunks) Memory() []byte { return c.mem }

// Frame returns a frame, and the MetaSize bytes in front of it, if both lie in one chunk: else nothing, and Socket.Received may know more, of
// a frame in a buffer or without such bytes.
func (c *Chunks) Frame(d Desc) (frame []byte, meta *[MetaSize]byte) {
	at := d.Addr & c.inside
	if d.Addr >= uint64(len(c.mem)) || at < MetaSize || at+uint64(d.Len) > c.inside+1 || d.Len == 0 {
		return nil, nil
	}
	return c.mem[d.Addr:][:d.Len:d.Len], (*[MetaSize]byte)(c.mem[d.Addr-MetaSize:])
}
