package demo

import (
	"context"
	"fmt"
	"os"
	"testing"
)

// TestMain makes the test binary its own child, as the product's binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == ChildVerb {
		if err := Child(context.Background(), os.Args[2], "test"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
