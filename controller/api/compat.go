package api

import "encoding/json"

// statsJSON is Stats without its methods.
type statsJSON Stats

// MarshalJSON also writes the name that outcomes had in schema 1, "verdicts". It goes with the next release.
func (s Stats) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		statsJSON
		Verdicts map[string]uint64 `json:"verdicts"`
	}{statsJSON(s), s.Outcomes})
}

// UnmarshalJSON also takes the counters of a controller of schema 1.
func (s *Stats) UnmarshalJSON(data []byte) error {
	var in struct {
		statsJSON
		Verdicts map[string]uint64 `json:"verdicts"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = Stats(in.statsJSON)
	if s.Outcomes == nil {
		s.Outcomes = in.Verdicts
	}
	return nil
}
