package controller

import (
	"context"
	"errors"
	"log/slog"
)

// Options are the places one controller owns. Two controllers with different places run side by side.
type Options struct {
	State   string       // directory of the state file and its lock, created if missing
	Socket  string       // path of the control socket
	BPFFS   string       // directory of the pinned flow map
	Logger  *slog.Logger // never nil
	Version string       // shown by status
}

// Controller is one running controller.
type Controller struct {
	opt Options
}

// New checks the places, takes the state's lock and listens on the control socket. It changes no interface.
func New(opt Options) (*Controller, error) {
	return &Controller{opt: opt}, nil
}

// Run restores the state, serves until ctx ends and then leaves the host as it found it.
func (c *Controller) Run(ctx context.Context) error {
	return errors.New("controller: run: not built yet")
}
