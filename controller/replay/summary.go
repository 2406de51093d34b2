package replay

import (
	"encoding/json"
	"io"

	"github.com/rscctl/rscctl/flowtable"
)

// Schema is the version of the summary object.
const Schema = 1

// Summary is the account of one replay: Packets = Merged + the sum of Reasons.
type Summary struct {
	Schema  int               `json:"schema"`
	Packets uint64            `json:"packets"` // read from the capture
	Frames  uint64            `json:"frames"`  // delivered
	Bytes   uint64            `json:"bytes"`   // of the frames delivered, from Ethernet on
	Dropped uint64            `json:"dropped"` // packets: those that are not for an access port
	Reasons map[string]uint64 `json:"reasons"` // packets passed alone or dropped
	Error   *string           `json:"error"`

	Superframes uint64            `json:"-"` // frames of two and more packets
	Merged      uint64            `json:"-"` // packets inside them
	Sealed      map[string]uint64 `json:"-"` // superframes by the reason they left
}

func newSummary() Summary {
	return Summary{Schema: Schema, Reasons: map[string]uint64{}, Sealed: map[string]uint64{}}
}

func (s *Summary) count(packets uint64, l *flowtable.Ledger) {
	s.Packets = packets
	s.Frames, s.Bytes = l.Frames, l.FrameBytes
	s.Superframes, s.Merged = l.Superframes, l.Merged
	for r := range flowtable.Reason(flowtable.NumReasons) {
		if n := l.Passed[r]; n > 0 {
			s.Reasons[r.String()] = n
		}
		if n := l.Sealed[r]; n > 0 {
			s.Sealed[r.String()] = n
		}
	}
}

// drop accounts for packets that never reached the table.
func (s *Summary) drop(r flowtable.Reason, packets uint64) {
	if packets > 0 {
		s.Dropped += packets
		s.Reasons[r.String()] += packets
	}
}

// WriteJSON prints the closing object of the JSON output.
func (s *Summary) WriteJSON(w io.Writer) error {
	return json.NewEncoder(w).Encode(map[string]*Summary{"summary": s})
}
