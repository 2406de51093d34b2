package netdev

import "errors"

// Kept is a handle for who asks again and again: its sockets are opened for the first question and stay open, in the network namespace of
// the thread that asked it. Whose answer was none, or one of trouble, may have sockets in a state that is not known: they are opened anew for
// the next question. The zero value is ready. It is for one goroutine at a time.
type Kept struct{ h *Handle }

// Handle is the handle, which stays k's and is good until Renew or Close.
func (k *Kept) Handle() (h *Handle, err error) {
	if k.h == nil {
		k.h, err = Open()
	}
	return k.h, err
}

// Renew makes the next question one of new sockets.
func (k *Kept) Renew() { _ = k.Close() }

// Close closes the sockets, if there are any.
func (k *Kept) Close() error {
	if k.h == nil {
		return nil
	}
	err := k.h.Close()
	k.h = nil
	return err
}

// InspectIndex is Handle.InspectIndex.
func (k *Kept) InspectIndex(index int) (*Facts, error) { return ask(k, index, (*Handle).InspectIndex) }

// BondOf is Handle.BondOf.
func (k *Kept) BondOf(index int) (*Bond, error) { return ask(k, index, (*Handle).BondOf) }

// ask asks about one interface. That there is none is an answer like another.
func ask[T any](k *Kept, index int, what func(*Handle, int) (*T, error)) (*T, error) {
	h, err := k.Handle()
	if err != nil {
		return nil, err
	}
	out, err := what(h, index)
	if err != nil && !errors.Is(err, ErrNoDevice) {
		k.Renew()
	}
	return out, err
}
