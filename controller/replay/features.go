package replay

import (
	"fmt"
	"strings"
)

// Features are the guest features assumed, in virtio's short names.
type Features struct {
	Csum bool // VIRTIO_NET_F_GUEST_CSUM
	TSO4 bool // VIRTIO_NET_F_GUEST_TSO4
	TSO6 bool // VIRTIO_NET_F_GUEST_TSO6
	ECN  bool // VIRTIO_NET_F_GUEST_ECN
	RSC  bool // VIRTIO_NET_F_RSC_EXT
}

// FeatureNames are the words ParseFeatures understands.
const FeatureNames = "csum, tso4, tso6, ecn, rsc"

// DefaultFeatures is what a Linux guest negotiates; the rsc profile is legal only with RSC_EXT.
func DefaultFeatures(rscProfile bool) Features {
	return Features{Csum: true, TSO4: true, TSO6: true, RSC: rscProfile}
}

// ParseFeatures reads a list like "csum,tso4", which replaces the default, or like "+ecn,-tso6", which changes it.
// "none" is the empty list. Combinations virtio forbids (TSO without csum) are accepted: the table then merges nothing.
func ParseFeatures(list string, def Features) (Features, error) {
	words := strings.Split(list, ",")
	var f Features
	if changes(words[0]) {
		f = def
	} else if strings.TrimSpace(list) == "none" {
		return f, nil
	}
	for _, word := range words {
		word = strings.TrimSpace(word)
		if changes(word) != changes(words[0]) {
			return f, fmt.Errorf("%s: a list of names and of changes at once", list)
		}
		bit := f.field(strings.ToLower(strings.TrimLeft(word, "+-")))
		if bit == nil {
			return f, fmt.Errorf("%q is no feature", word)
		}
		*bit = !strings.HasPrefix(word, "-")
	}
	return f, nil
}

func changes(word string) bool {
	word = strings.TrimSpace(word)
	return strings.HasPrefix(word, "+") || strings.HasPrefix(word, "-")
}

func (f *Features) field(name string) *bool {
	switch name {
	case "csum", "guest_csum":
		return &f.Csum
	case "tso4", "guest_tso4":
		return &f.TSO4
	case "tso6", "guest_tso6":
		return &f.TSO6
	case "ecn", "guest_ecn":
		return &f.ECN
	case "rsc", "rsc_ext":
		return &f.RSC
	}
	return nil
}
