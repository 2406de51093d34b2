package guestmem

import (
	"reflect"
	"runtime"
	"runtime/debug"
)

// Touch runs fn, which reads or writes memory of t, and makes an error of a fault there: ErrFault. The front-end can take
// its memory away at any moment (ftruncate, a hole where the file system is full, huge pages that are not there), and the
// kernel then answers our next access with SIGBUS.
//
// fn touches and does nothing else: whoever calls Touch changes no state before it has returned, so that there is nothing
// to take back. It is for the control side; the data path has a guard of its own for a whole frame. The caller has a hold.
func (t *Table) Touch(fn func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !IsFault(r) {
				panic(r)
			}
			err = ErrFault
		}
	}()
	if t.opt.Touching != nil {
		t.opt.Touching()
	}
	fn()
	return nil
}

// IsFault tells a fault in guest memory from every other panic, given what recover returned: under
// debug.SetPanicOnFault the runtime reports such a fault with its address. (A nil pointer has none: it stays a mistake.)
func IsFault(r any) bool {
	_, fault := FaultAt(r)
	return fault
}

// FaultAt is IsFault that tells the address, too.
func FaultAt(r any) (at uintptr, fault bool) {
	e, ok := r.(runtime.Error)
	if !ok {
		return 0, false
	}
	a, fault := e.(interface{ Addr() uintptr })
	if !fault {
		return 0, false
	}
	return a.Addr(), true
}

// Within says whether an address lies in one of the slices: with two guests' memory in hand it tells whose fault a fault was.
func Within(memory [][]byte, at uintptr) bool {
	for _, b := range memory {
		if from := reflect.ValueOf(b).Pointer(); at-from < uintptr(len(b)) {
			return true
		}
	}
	return false
}
