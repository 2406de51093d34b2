// Package parcel is how a controller is handed from one process to the next: a state that describes itself, and the descriptors that
// it names. docs/handover.md has the format.
//
// A parcel is sent over a Unix stream socket (Send, Receive). It knows neither what the state says nor what the descriptors are for;
// it sees to it that all of them arrive, each once and of the kind that was promised, and that none is left open when they do not.
package parcel
