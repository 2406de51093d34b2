package api

// WorkerState tells how the worker of a NIC queue is.
type WorkerState string

// The states of a worker.
const (
	WorkerRunning WorkerState = "running"
	WorkerStuck   WorkerState = "stuck"  // it does not answer: what it counted is not known
	WorkerFailed  WorkerState = "failed" // it has ended, and is made anew
)
