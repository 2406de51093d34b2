package apply

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/rscctl/rscctl/controller/api"
)

// Rate is a rate as the flag takes it: 100Mbit, 1Gbit/256KiB, none.
type Rate struct{ bits, burst uint64 }

// UnmarshalYAML implements yaml.Unmarshaler.
func (r *Rate) UnmarshalYAML(n *yaml.Node) (err error) {
	if r.bits, r.burst, err = api.ParseRate(n.Value); err != nil {
		return fmt.Errorf("line %d: rate %w", n.Line, err)
	}
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (r Rate) MarshalYAML() (any, error) { return api.RateText(r.bits, r.burst), nil }

// patch is the rate as a patch of the policy has it; of nil nothing.
func (r *Rate) patch() (rate, burst *uint64) {
	if r == nil {
		return nil, nil
	}
	return &r.bits, &r.burst
}
