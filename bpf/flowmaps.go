package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// DefaultFlowEntries is how many flows of one VM are counted at a time, both directions together: 1.9 MB of kernel memory.
	DefaultFlowEntries = 8192
	// MaxFlowEntries is how many may be: 250 MB.
	MaxFlowEntries = 1 << 20
	maxVMs         = 4096 // of all interfaces
	flowsVersion   = 1    // count it up when a row means something else, though its size is the same
)

// vmKey is a VM's name as the kernel's map of maps has it: padded with zeros, which no name contains.
type vmKey [64]byte

// Flows are the flow maps of the VMs, one each, by name. A VM's flows cannot push out another's, and what is read from a VM's
// map is of that VM, whatever index and interface it had when the flows were counted.
//
// The maps are held by a BPF map of maps. Where that is pinned, they outlive the process, and the next one finds each VM's flows
// by the VM's name. Its methods may be called from any goroutine.
type Flows struct {
	vms  *ebpf.Map     // from vmKey to a flow map
	spec *ebpf.MapSpec // of a flow map

	mu   sync.Mutex
	open map[string]*ebpf.Map // of those in vms; kept open, because programs are loaded with them
}

// FlowSpec is what the programs need a VM's flow map to be. It is read from their object, which takes a millisecond.
type FlowSpec struct{ rows *ebpf.MapSpec }

// NewFlowSpec reads it. entries is the room for flows of each VM, 0: DefaultFlowEntries.
func NewFlowSpec(entries int) (*FlowSpec, error) {
	object, err := LoadRsc()
	if err != nil {
		return nil, fmt.Errorf("flow maps: object: %w", err)
	}
	rows := object.Maps[RscMapFlows].InnerMap.Copy()
	rows.Name, rows.MaxEntries = "vm_flows", orDefault(entries, DefaultFlowEntries)
	return &FlowSpec{rows}, nil
}

// OpenFlows opens the flow maps pinned at pinPath, or makes an empty set and pins it there (mode 0600, missing folders 0700).
// When pinPath is empty or not on a BPF filesystem, nothing is pinned and pinned is false; nothing is ever mounted. What an
// older version pinned there is replaced, because its rows mean something else. Error: ErrPermission, ErrUnsupported.
func OpenFlows(pinPath string, spec *FlowSpec) (f *Flows, pinned bool, err error) {
	f = &Flows{spec: spec.rows, open: map[string]*ebpf.Map{}}
	outer := flowsSpec(spec.rows)
	if pinPath == "" || !OnBPFFS(filepath.Dir(pinPath)) {
		f.vms, err = ebpf.NewMap(outer)
		return f, false, flowsError(err)
	}
	if err := os.MkdirAll(filepath.Dir(pinPath), 0o700); err != nil {
		return nil, false, fmt.Errorf("flow maps: %w", err)
	}
	f.vms, err = ebpf.LoadPinnedMap(pinPath, nil)
	switch {
	case err == nil && sameMap(f.vms, outer):
		return f, true, nil
	case err == nil:
		f.vms.Close()
		if err := os.Remove(pinPath); err != nil {
			return nil, false, fmt.Errorf("flow maps: replace: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, flowsError(fmt.Errorf("pin %s: %w", pinPath, err))
	}
	if f.vms, err = ebpf.NewMap(outer); err != nil {
		return nil, false, flowsError(err)
	}
	if err := f.vms.Pin(pinPath); err != nil {
		f.vms.Close()
		return nil, false, flowsError(fmt.Errorf("pin %s: %w", pinPath, err))
	}
	return f, true, nil
}

// SameFlows tells whether OpenFlows would go on with what is pinned at pinPath, and change nothing.
func SameFlows(pinPath string, spec *FlowSpec) bool {
	m, err := ebpf.LoadPinnedMap(pinPath, nil)
	if err != nil {
		return false
	}
	defer m.Close()
	return sameMap(m, flowsSpec(spec.rows))
}

// FD is the descriptor of the map of maps, for AdoptFlows in another process. Borrowed, valid until Close.
func (f *Flows) FD() int { return f.vms.FD() }

// ID is the kernel's number of that map.
func (f *Flows) ID() uint32 { return mapID(f.vms) }

// AdoptFlows goes on with the flow maps of another process, pinned or not. The descriptor is taken over, also with an error. What an
// older version made is left, and counting begins anew. Errors: ErrParts, and those of OpenFlows.
func AdoptFlows(fd int, spec *FlowSpec) (f *Flows, same bool, err error) {
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, false, fmt.Errorf("flow maps: %w: %w", ErrParts, err)
	}
	outer := flowsSpec(spec.rows)
	f = &Flows{spec: spec.rows, open: map[string]*ebpf.Map{}, vms: m}
	if sameMap(m, outer) {
		return f, true, nil
	}
	m.Close()
	f.vms, err = ebpf.NewMap(outer)
	return f, false, flowsError(err)
}

// flowsSpec is the map of maps. The name tells the layouts apart: an older version's map is of another kind, or its rows are of
// another size or version.
func flowsSpec(rows *ebpf.MapSpec) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: fmt.Sprintf("vms_%d_%d_%d", rows.KeySize, rows.ValueSize, flowsVersion), Type: ebpf.HashOfMaps,
		KeySize: uint32(len(vmKey{})), ValueSize: 4, MaxEntries: maxVMs, Flags: unix.BPF_F_NO_PREALLOC,
		InnerMap: &ebpf.MapSpec{Type: rows.Type, KeySize: rows.KeySize, ValueSize: rows.ValueSize, MaxEntries: 1},
	}
}

// sameMap tells whether a pinned map is what this version would make.
func sameMap(m *ebpf.Map, spec *ebpf.MapSpec) bool {
	info, err := m.Info()
	return err == nil && info.Name == spec.Name && spec.Compatible(m) == nil
}

// VM returns the flow map of a VM: the one that it has, or a new one. It stays open, and the caller must not close it.
func (f *Flows) VM(name string) (*ebpf.Map, error) {
	key, err := keyOf(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.open[name]; m != nil {
		return m, nil
	}
	m := f.find(key)
	if m != nil {
		f.open[name] = m
		return m, nil
	}
	if m, err = ebpf.NewMap(f.spec); err != nil {
		return nil, flowsError(err)
	}
	if err := f.vms.Put(key, m); err != nil {
		m.Close()
		return nil, flowsError(fmt.Errorf("VM %s: %w", name, err))
	}
	f.open[name] = m
	return m, nil
}

// find opens the map that a VM has, nil when it has none or one of another size.
func (f *Flows) find(key vmKey) (m *ebpf.Map) {
	if f.vms.Lookup(key, &m) != nil {
		return nil
	}
	if f.spec.Compatible(m) != nil {
		m.Close()
		return nil
	}
	return m
}

// Has tells whether VM would go on with what the VM has, and change nothing.
func (f *Flows) Has(name string) bool {
	key, err := keyOf(name)
	if err != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[name] == nil {
		if m := f.find(key); m != nil {
			f.open[name] = m
		}
	}
	return f.open[name] != nil
}

// Reopen closes the map of a VM, which nobody may use any more, so that VM looks anew for what another process has made of it.
func (f *Flows) Reopen(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[name].Close() // of a nil map: nothing
	delete(f.open, name)
}

// Retain drops the flows of all VMs but those that keep names.
func (f *Flows) Retain(keep func(vm string) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var gone []vmKey
	var key vmKey
	var id uint32
	it := f.vms.Iterate()
	for it.Next(&key, &id) {
		if !keep(key.name()) {
			gone = append(gone, key)
		}
	}
	errs := []error{it.Err()}
	for _, key := range gone {
		if err := f.vms.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
		f.open[key.name()].Close() // of a nil map: nothing
		delete(f.open, key.name())
	}
	return flowsError(errors.Join(errs...))
}

// Close closes the maps. What is pinned stays.
func (f *Flows) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := []error{f.vms.Close()}
	for _, m := range f.open {
		errs = append(errs, m.Close())
	}
	clear(f.open)
	return errors.Join(errs...)
}

func keyOf(name string) (key vmKey, err error) {
	if name == "" || len(name) > len(key) || strings.ContainsRune(name, 0) {
		return key, fmt.Errorf("flow maps: VM %q: %w", name, ErrName)
	}
	copy(key[:], name)
	return key, nil
}

func (k vmKey) name() string { return strings.TrimRight(string(k[:]), "\x00") }

func flowsError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("flow maps: %w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("flow maps: %w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("flow maps: %w", err)
}

// OnBPFFS tells whether dir, or what exists of it, lies on a BPF filesystem.
func OnBPFFS(dir string) bool {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return uint32(st.Type) == unix.BPF_FS_MAGIC
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) || up == dir {
			return false
		}
		dir = up
	}
}
