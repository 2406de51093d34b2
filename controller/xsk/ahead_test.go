package xsk

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A mapping that was made ahead is used for the memory that it is of, and once; for other memory Adopt makes its own.
func TestAMappingMadeAheadIsOfOneMemory(t *testing.T) {
	c := Config{Ifindex: 1, Chunks: 64, ChunkSize: 2048, RxSize: 64, TxSize: 64, FillSize: 64, CompSize: 64}
	memory := func() int {
		fd, err := newMemory(umemName, c.umemSize())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	its, other := memory(), memory()
	a, err := MapAhead(c, its)
	if err != nil {
		t.Fatal(err)
	}
	if a.take(other, c.umemSize()) != nil || a.take(its, c.umemSize()/2) != nil {
		t.Error("taken for memory that it is not of")
	}
	mem := a.take(its, c.umemSize())
	if len(mem) != c.umemSize() || a.take(its, c.umemSize()) != nil {
		t.Fatalf("taken: %d bytes, and then again", len(mem))
	}
	if err := a.Close(); err != nil { // no more than what it still has
		t.Error(err)
	}
	mem[0] = 7
	var b [1]byte
	if _, err := unix.Pread(its, b[:], 0); err != nil || b[0] != 7 {
		t.Errorf("the mapping is not the file: %d, %v", b[0], err)
	}
	if err := unix.Munmap(mem); err != nil {
		t.Error(err)
	}
	if (*Ahead)(nil).take(its, c.umemSize()) != nil || (*Ahead)(nil).Close() != nil {
		t.Error("nil is no mapping")
	}
	short := c
	short.Chunks = 32
	if _, err := MapAhead(short, its); !errors.Is(err, ErrParts) {
		t.Errorf("memory of another size: %v", err)
	}
}
