package api

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// adaptive is the word for a hold that finds its length by itself.
const adaptive = "adaptive"

// ErrHold is returned for what is no hold.
var ErrHold = errors.New("not a hold")

// HoldText is a hold as the flag --hold takes it: "50us", "adaptive", or with a bound that is not AdaptiveHold "adaptive:1ms".
func HoldText(hold time.Duration, adapts bool) string {
	text := strings.ReplaceAll(hold.String(), "µ", "u") // as it is typed
	switch {
	case !adapts:
		return text
	case hold == AdaptiveHold:
		return adaptive
	}
	return adaptive + ":" + text
}

// ParseHold reads what HoldText writes. Errors: ErrHold. The bounds are Check's.
func ParseHold(text string) (hold time.Duration, adapts bool, err error) {
	if text == adaptive {
		return AdaptiveHold, true, nil
	}
	length, adapts := strings.CutPrefix(text, adaptive+":")
	hold, err = time.ParseDuration(length)
	if err != nil || adapts && hold <= 0 {
		return 0, false, fmt.Errorf("%w: %q", ErrHold, text)
	}
	return hold, adapts, nil
}

// Hold is the policy's hold as HoldText writes it.
func (p Policy) Hold() string { return HoldText(time.Duration(p.HoldNS), p.HoldAdaptive) }

// hold changes a policy's hold. A length alone means just that: so it was before holds could adapt.
func (p *PolicyPatch) hold(base *Policy) {
	if p.HoldNS == nil && p.HoldAdaptive == nil {
		return
	}
	adapts := p.HoldAdaptive != nil && *p.HoldAdaptive
	switch {
	case p.HoldNS != nil:
		base.HoldNS = *p.HoldNS
	case adapts && !base.HoldAdaptive:
		base.HoldNS = AdaptiveHold.Nanoseconds()
	case !adapts && base.HoldAdaptive:
		base.HoldNS = FixedHold.Nanoseconds()
	}
	base.HoldAdaptive = adapts
}
