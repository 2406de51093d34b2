package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Flow is one row of the flow map.
type Flow struct {
	Key   FlowKey
	Stats FlowStats
}

// OpenFlows opens the flow map pinned at pinPath, or makes one and pins it there (mode 0600, missing folders 0700). When
// pinPath is empty or not on a BPF filesystem, the map is made unpinned and pinned is false; nothing is ever mounted.
// A pinned map of another shape, such as an older version's, is replaced. Error: ErrPermission, ErrUnsupported.
func OpenFlows(pinPath string, entries int) (m *ebpf.Map, pinned bool, err error) {
	spec, err := LoadRsc()
	if err != nil {
		return nil, false, fmt.Errorf("flow map: object: %w", err)
	}
	ms := spec.Maps[RscMapFlows]
	ms.MaxEntries = orDefault(entries, DefaultFlowEntries)
	if pinPath == "" || !onBPFFS(filepath.Dir(pinPath)) {
		m, err = ebpf.NewMap(ms)
		return m, false, flowsError(err)
	}
	if err := os.MkdirAll(filepath.Dir(pinPath), 0o700); err != nil {
		return nil, false, fmt.Errorf("flow map: %w", err)
	}
	m, err = ebpf.LoadPinnedMap(pinPath, nil)
	switch {
	case err == nil && ms.Compatible(m) == nil:
		return m, true, nil
	case err == nil:
		m.Close()
		if err := os.Remove(pinPath); err != nil {
			return nil, false, fmt.Errorf("flow map: replace: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, flowsError(fmt.Errorf("pin %s: %w", pinPath, err))
	}
	if m, err = ebpf.NewMap(ms); err != nil {
		return nil, false, flowsError(err)
	}
	if err := m.Pin(pinPath); err != nil {
		m.Close()
		return nil, false, flowsError(fmt.Errorf("pin %s: %w", pinPath, err))
	}
	return m, true, nil
}

func flowsError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("flow map: %w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("flow map: %w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("flow map: %w", err)
}

// onBPFFS tells whether dir, or what exists of it, lies on a BPF filesystem.
func onBPFFS(dir string) bool {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return uint32(st.Type) == unix.BPF_FS_MAGIC
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) || up == dir {
			return false
		}
		dir = up
	}
}

const flowBatch = 1024

// ReadFlows returns all rows. Rows change while they are read: each key is right, its counters are a moment's, and a flow
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
