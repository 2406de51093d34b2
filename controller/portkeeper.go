package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/vhost"
)

// portKeeper is a vhost.Keeper over the store.
type portKeeper struct {
	store  *fdstore.Store
	prefix string
	name   string // of the note, which is this process's: a store may keep two files under one name
	note   *fdstore.Note
	noted  bool // the note is in the store

	mu      sync.Mutex
	files   map[string]fileID // by the port's names: what is kept, or was by the process before
	stored  map[fileID]bool   // memory that is kept: the store keeps each file once, and a guest may give it several names
	aliases map[string]string // the names of it: what it is kept as
}

// fileID is the identity of a memory file. Zero: another file, which has one name.
type fileID struct{ dev, ino uint64 }

// port keeps for one vhost-user port.
func (s *survivor) port(tag string) (*portKeeper, error) {
	note, err := fdstore.NewNote("rscctl-port", portRoom)
	if err != nil {
		return nil, err
	}
	return &portKeeper{store: s.store, prefix: tag + portPart, name: portNoteName(tag, s.process), note: note, files: map[string]fileID{}, stored: map[fileID]bool{}, aliases: map[string]string{}}, nil
}

// portNote is a port's state in its note, and which names stand for the file of another.
type portNote struct {
	State   json.RawMessage   `json:"state"`
	Aliases map[string]string `json:"aliases,omitempty"`
}

// portNoteName is the name of the note of a port in one process.
func portNoteName(tag string, process int) string {
	return tag + portPart + notePrefix + strconv.Itoa(process)
}

// keptAs is what a file is kept as: memory by its identity, so that no name of it is free for another file before the last one is.
func keptAs(name string, id fileID) string {
	if id == (fileID{}) {
		return name
	}
	return fmt.Sprintf("%s%x-%x", memoryPrefix, id.dev, id.ino)
}

// had notes what the store may have from the process before, so that Drop finds it.
func (k *portKeeper) had(files []vhost.NamedFile) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range files {
		k.files[f.Name] = memoryID(f.FD)
	}
}

// portNotes are the names of the notes that the VMs' ports have in one process.
func (s *packed) portNotes(process int) (names []string) {
	for _, u := range s.Uplinks {
		for _, vm := range u.VMs {
			names = append(names, portNoteName(vm.Tag, process))
		}
	}
	return names
}

// Put implements vhost.Keeper.
func (k *portKeeper) Put(name string, fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := memoryID(fd)
	as := keptAs(name, id)
	if !k.stored[id] {
		if err := k.store.Put(k.prefix+as, fd); err != nil {
			return err
		}
	}
	k.files[name] = id
	if id != (fileID{}) {
		k.stored[id], k.aliases[name] = true, as
	}
	return nil
}

// leave ends the use of the note, which the store has: nobody writes it here any more.
func (k *portKeeper) leave() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.note.Close()
}

// idOf is the identity of any file, and its kind as st_mode has it.
func idOf(fd int) (fileID, uint32) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return fileID{}, 0
	}
	return fileID{uint64(st.Dev), st.Ino}, st.Mode & unix.S_IFMT
}

// memoryID is the identity of a memory file, zero for other files.
func memoryID(fd int) fileID {
	id, mode := idOf(fd)
	if mode != unix.S_IFREG {
		return fileID{}
	}
	return id
}

// Drop implements vhost.Keeper. A file goes with the last of its names.
func (k *portKeeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := k.files[name]
	delete(k.files, name)
	delete(k.aliases, name)
	if id != (fileID{}) {
		for _, other := range k.files {
			if other == id {
				return nil
			}
		}
		delete(k.stored, id)
	}
	return k.store.Drop(k.prefix + keptAs(name, id))
}

// Note implements vhost.Keeper.
func (k *portKeeper) Note(state []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if state == nil {
		k.noted = false
		return errors.Join(k.store.Drop(k.name), k.note.Close())
	}
	body, err := json.Marshal(portNote{State: state, Aliases: k.aliases})
	if err == nil {
		err = k.note.Write(body)
	}
	if err == nil && !k.noted { // a store may keep two files under one name
		if err = errors.Join(k.store.Drop(k.name), k.store.Put(k.name, k.note.FD())); err == nil {
			k.noted = true
		}
	}
	return err
}

// takePort takes what a port had kept under a tag: its state and its files.
func takePort(p *parcel.Parcel, tag string) (state []byte, files map[string]int, err error) {
	prefix := tag + portPart
	newest := -1
	for _, f := range p.Files() {
		if n, ok := strings.CutPrefix(f.Name, prefix+notePrefix); ok {
			if process, aerr := strconv.Atoi(n); aerr == nil {
				newest = max(newest, process)
			}
		}
	}
	fd, err := p.Take(portNoteName(tag, newest), parcel.Memory)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	body, err := fdstore.ReadNote(fd)
	var n portNote
	if err == nil {
		err = json.Unmarshal(body, &n)
	}
	if err != nil {
		return nil, nil, err
	}
	kept := map[string]int{}
	files = map[string]int{}
	defer func() {
		for _, fd := range kept {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	for _, f := range p.Files() {
		name, ours := strings.CutPrefix(f.Name, prefix)
		to := files
		switch {
		case !ours || strings.HasPrefix(name, notePrefix):
			continue
		case strings.HasPrefix(name, memoryPrefix):
			to = kept
		}
		fd, err := p.TakeAny(f.Name)
		if err != nil {
			return nil, files, err
		}
		to[name] = fd
	}
	for alias, of := range n.Aliases {
		held, there := kept[of]
		if !there { // dropped behind the note; the state says what it needs
			continue
		}
		fd, err := unix.FcntlInt(uintptr(held), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, files, err
		}
		files[alias] = fd
	}
	return n.State, files, nil
}
