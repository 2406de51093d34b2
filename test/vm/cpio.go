package vm

import (
	"fmt"
	"io"
	"strings"
)

// cpioWriter writes the "newc" format that the kernel unpacks as initramfs (Documentation/driver-api/early-userspace/
// buffer-format.rst): a header of ASCII hex fields, the name, the data, each padded to four bytes.
type cpioWriter struct {
	w   io.Writer
	ino int
	n   int64 // bytes written
	err error // the first error; later calls do nothing
}

// File types and permissions in the mode field, as in stat(2).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioChar = 0o020000
)

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

// dir adds a folder. The kernel makes no missing parents: add them first.
func (c *cpioWriter) dir(name string) { c.entry(name, cpioDir|0o755, 0, 0, nil) }

// file adds a regular file.
func (c *cpioWriter) file(name string, perm int, data []byte) {
	c.entry(name, cpioFile|perm, 0, 0, data)
}

// char adds a character device node.
func (c *cpioWriter) char(name string, perm, major, minor int) {
	c.entry(name, cpioChar|perm, major, minor, nil)
}

// close ends the archive and returns the first error of all calls.
func (c *cpioWriter) close() error {
	c.ino = -1
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode, major, minor int, data []byte) {
	name = strings.TrimPrefix(name, "/")
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1 /* links */, 0, /* time: the same input gives the same archive */
		len(data), 0, 0, major, minor, len(name)+1, 0))
	c.write([]byte(name + "\x00"))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) pad() {
	if over := c.n % 4; over != 0 {
		c.write(make([]byte, 4-over))
	}
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}
