// Package why puts the counters of one VM into sentences: what is merged, what is not and why, how long frames are held, what is
// dropped and whose fault it is, and what to do. It looks at nothing but what the controller's own answers say, so it needs no
// root and no controller, and all of it is tested on made-up counters.
package why

import "github.com/rscctl/rscctl/controller/api"

// Topic is what a sentence is about.
type Topic string

// Topics, in the order in which an answer has them.
const (
	State  Topic = "state"  // whether the VM is served at all
	Merged Topic = "merged" // the share that is merged, and what it is worth
	Ends   Topic = "ends"   // why superframes are not longer
	Alone  Topic = "alone"  // why packets pass alone
	Held   Topic = "held"   // how long frames wait
	Lost   Topic = "lost"   // what was dropped, and whose fault it is
)

// Sentence says one thing. Do is what to do about it, "" for nothing.
type Sentence struct {
	Topic   Topic  `json:"topic"`
	Text    string `json:"text"`
	Do      string `json:"do,omitempty"`
	Reason  string `json:"reason,omitempty"`  // the counter it is about, as in docs/counters.md
	Packets uint64 `json:"packets,omitempty"` // or superframes, as Text says
}

// Answer is what is to be said of one VM.
type Answer struct {
	Schema    int        `json:"schema"`
	VM        string     `json:"vm"`
	Iface     string     `json:"iface"`
	Sentences []Sentence `json:"sentences"`
}

// VM is what the controller says of one VM: that it waits, or its counters, its port and its interface's queues.
type VM struct {
	Waiting *api.Waiting
	Stats   *api.VMStats
	Port    *api.Port // nil: not known
	Queues  []api.Queue
}
