package vm

import (
	"testing"

	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/stream"
)

const nsPrefix = "rscvm-"

// checkTransfer wants all the bytes of a stream, unchanged.
func checkTransfer(t *testing.T, what string, got control.Transfer, seed uint64, bytes int64) {
	t.Helper()
	t.Logf("%s: %d MB in %.1f s, %.0f Mb/s", what, got.Bytes/1e6, got.Duration.Seconds(), got.BitsPerSecond()/1e6)
	if got.Error != "" {
		t.Errorf("%s: %s", what, got.Error)
	}
	if want := stream.Sum(seed, bytes); got.Bytes != bytes || got.SHA256 != want {
		t.Errorf("%s: %d bytes with SHA-256 %s, want %d with %s", what, got.Bytes, got.SHA256, bytes, want)
	}
}
