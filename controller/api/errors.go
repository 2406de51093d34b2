package api

import (
	"encoding/json"
	"errors"
	"net/http"
)

// Code names the kind of an error for programs. Codes are part of the contract: they are added, never changed.
type Code string

// What went wrong, for errors.Is on either side of the control socket. Each error's text says more: on what, and what to do.
var (
	// ErrUsage: the request itself cannot be right; the command line exits with 2.
	ErrUsage = errors.New("wrong usage")
	// ErrPermission: the peer may not use the control socket, or may not connect to it.
	ErrPermission = errors.New("permission denied")
	// ErrUnknownVM and ErrUnknownIface: what was named is not attached.
	ErrUnknownVM    = errors.New("no such VM is attached")
	ErrUnknownIface = errors.New("not attached")
	// ErrTaken: a VM name, a (VLAN, MAC), a socket or a tap belongs to another VM.
	ErrTaken = errors.New("already taken")
	// ErrLimit: there are as many VMs as there can be.
	ErrLimit = errors.New("no room for another VM")
	// ErrHeld: the state directory, the control socket or the interface belongs to another controller.
	ErrHeld = errors.New("held by another controller")
	// ErrFiltered: rules of the host touch the path that a VM's frames would no longer take.
	ErrFiltered = errors.New("rules would be bypassed")
	// ErrMTU: the interface's frames do not fit a UMEM chunk.
	ErrMTU = errors.New("MTU too large")
	// ErrWorker: a worker did not answer within its bound, or is gone.
	ErrWorker = errors.New("worker does not answer")
	// ErrBusy: as many listen to the VM, or to all of them, as may.
	ErrBusy = errors.New("too many listeners")
	// ErrNotSaved: the state could not be written, so nothing was changed.
	ErrNotSaved = errors.New("state not saved")
)

// CodeFailed is the code of an error that is none of the above.
const CodeFailed Code = "failed"

// kinds is the one table of codes. An error that is several of them is the first.
var kinds = []struct {
	err    error
	code   Code
	status int // of HTTP
}{
	{ErrUsage, "usage", http.StatusBadRequest},
	{ErrPermission, "permission", http.StatusForbidden},
	{ErrUnknownVM, "unknown_vm", http.StatusNotFound},
	{ErrUnknownIface, "unknown_iface", http.StatusNotFound},
	{ErrTaken, "taken", http.StatusConflict},
	{ErrLimit, "limit", http.StatusConflict},
	{ErrHeld, "held", http.StatusConflict},
	{ErrFiltered, "filtered", http.StatusConflict},
	{ErrMTU, "mtu", http.StatusConflict},
	{ErrBusy, "busy", http.StatusTooManyRequests},
	{ErrNotSaved, "not_saved", http.StatusInsufficientStorage},
	{ErrWorker, "worker", http.StatusServiceUnavailable},
}

// NewError is err as it crosses the control socket.
func NewError(err error) *Error {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &Error{Status: k.status, ErrorBody: ErrorBody{Code: k.code, Message: err.Error()}}
		}
	}
	return &Error{Status: http.StatusInternalServerError, ErrorBody: ErrorBody{Code: CodeFailed, Message: err.Error()}}
}

// Error is a controller's refusal. Its text is the controller's own and complete: what, on what, what to do.
type Error struct {
	Status int // of HTTP
	ErrorBody
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the sentinel of the error's code, nil for CodeFailed and for codes of a newer controller.
func (e *Error) Unwrap() error {
	for _, k := range kinds {
		if k.code == e.Code {
			return k.err
		}
	}
	return nil
}

// ErrorBody is the body of every failed request: {"error": {"code": ..., "message": ...}}.
type ErrorBody struct {
	Code    Code
	Message string
}

type errorJSON struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (b ErrorBody) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]errorJSON{"error": errorJSON(b)})
}

// UnmarshalJSON also reads the form of schema 1, {"error": "text", "usage": true}: a controller may be older than its command line.
func (b *ErrorBody) UnmarshalJSON(data []byte) error {
	var now struct {
		Error errorJSON `json:"error"`
	}
	if json.Unmarshal(data, &now) == nil {
		*b = ErrorBody(now.Error)
		return nil
	}
	var old struct {
		Error string `json:"error"`
		Usage bool   `json:"usage"`
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return err
	}
	*b = ErrorBody{Code: CodeFailed, Message: old.Error}
	if old.Usage {
		b.Code = "usage"
	}
	return nil
}
