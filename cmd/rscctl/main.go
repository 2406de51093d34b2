// Command rscctl runs and steers the coalescing offload controller.
package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	// SIGINT and SIGTERM end a command by its context, so that it can clean up; a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	for _, v := range os.Environ() { // an empty variable names no place
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "RSCCTL_") && value == "" {
			os.Unsetenv(name)
		}
	}
	os.Exit(execute(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
}
