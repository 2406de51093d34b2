package replay

import (
	"context"
	"io"
)

// Interruptible returns a reader of r whose Read returns when ctx ends, with its cause, although r may block for ever: a
// pipe or a terminal. The Read of r that blocks then is left to itself.
func Interruptible(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{r}, make([]byte, 256<<10))
		pw.CloseWithError(err) // nil: io.EOF
	}()
	return pr
}
