package stream

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
	"testing/iotest"
)

func TestBytesDoNotDependOnTheSizeOfReads(t *testing.T) {
	const n = 1021
	want, err := io.ReadAll(New(7, n))
	if err != nil || len(want) != n {
		t.Fatalf("read %d bytes, %v", len(want), err)
	}
	for _, size := range []int{1, 2, 7, 8, 9, 13, 64, 1000} {
		var got bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{New(7, n)}, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("reads of %d bytes give other bytes", size)
		}
	}
	if err := iotest.TestReader(New(7, n), want); err != nil {
		t.Error(err)
	}
}

func TestSeedsGiveDifferentStreams(t *testing.T) {
	a, _ := io.ReadAll(New(1, 64))
	b, _ := io.ReadAll(New(2, 64))
	if bytes.Equal(a, b) {
		t.Error("seeds 1 and 2 give the same bytes")
	}
}

func TestSumIsTheHashOfTheBytes(t *testing.T) {
	b, _ := io.ReadAll(New(3, 100_000))
	sum := sha256.Sum256(b)
	if got := Sum(3, 100_000); got != hex.EncodeToString(sum[:]) {
		t.Errorf("Sum = %s", got)
	}
}
