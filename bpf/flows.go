package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Flow is one row of a VM's flow map.
type Flow struct {
	Key   FlowKey
	Stats FlowStats
}

const flowBatch = 1024

// ReadFlows returns all rows of a VM's flow map, without what is not there yet: for flows as they are, see SlotView. Rows change while they are read: each key is right, its counters are a moment's, and a flow
// that came or went meanwhile may be in or not.
func ReadFlows(m *ebpf.Map) ([]Flow, error) {
	var (
		out    []Flow
		cursor ebpf.MapBatchCursor
		keys   = make([]FlowKey, flowBatch)
		stats  = make([]FlowStats, flowBatch)
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, stats, nil)
		if errors.Is(err, unix.ENOSPC) && len(keys) <= int(m.MaxEntries()) {
			// One hash bucket holds more rows than the batch: read it with more room, from where we are.
			keys, stats = make([]FlowKey, 2*len(keys)), make([]FlowStats, 2*len(keys))
			continue
		}
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return nil, fmt.Errorf("flow map: read: %w", err)
		}
		for i := range n {
			out = append(out, Flow{Key: keys[i], Stats: stats[i]})
		}
		if end {
			return out, nil
		}
	}
}
