package controller

import "github.com/rscctl/rscctl/controller/api"

// Sentinels of the control side: those of the control socket, so that each reaches a client as what it is. Each message that
// wraps one says what failed, on what, and what to do.
var (
	ErrHeld         = api.ErrHeld
	ErrTaken        = api.ErrTaken
	ErrLimit        = api.ErrLimit
	ErrUnknownVM    = api.ErrUnknownVM
	ErrUnknownIface = api.ErrUnknownIface
	ErrFiltered     = api.ErrFiltered
	ErrUsage        = api.ErrUsage
	ErrWorker       = api.ErrWorker
	ErrMTU          = api.ErrMTU
	ErrNotSaved     = api.ErrNotSaved
)

// coded is an error that is also a sentinel, without its words.
type coded struct {
	error
	sentinel error
}

func (c coded) Unwrap() []error { return []error{c.error, c.sentinel} }
