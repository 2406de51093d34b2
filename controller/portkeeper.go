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
)

// portKeeper is a vhost.Keeper over the store.
type portKeeper struct {
	store  *fdstore.Store
	prefix string
	name   string // of the note, which is this process's: a store may keep two files under one name
	note   *fdstore.Note
	noted  bool // the note is in the store

	mu      sync.Mutex
	files   map[string]fileID // of names that are wanted
	holder  map[fileID]string // the name that a file is kept under: the store keeps each once
	aliases map[string]string // other names of it
}

// fileID is the identity of a file that may be given several names. Zero: it has one.
type fileID struct{ dev, ino uint64 }

// port keeps for one vhost-user port.
func (s *survivor) port(tag string) (*portKeeper, error) {
	note, err := fdstore.NewNote("rscctl-port", portRoom)
	if err != nil {
		return nil, err
	}
	return &portKeeper{store: s.store, prefix: tag + portPart, name: portNoteName(tag, s.process), note: note, files: map[string]fileID{}, holder: map[fileID]string{}, aliases: map[string]string{}}, nil
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

// Put implements vhost.Keeper.
func (k *portKeeper) Put(name string, fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := memoryID(fd)
	if holder := k.holder[id]; id != (fileID{}) && holder != "" && holder != name {
		k.files[name], k.aliases[name] = id, holder
		return nil
	}
	if err := k.store.Put(k.prefix+name, fd); err != nil {
		return err
	}
	k.files[name] = id
	if id != (fileID{}) {
		k.holder[id] = name
	}
	return nil
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
	id, wanted := k.files[name]
	delete(k.files, name)
	delete(k.aliases, name)
	if !wanted || id == (fileID{}) {
		return k.store.Drop(k.prefix + name)
	}
	for _, other := range k.files {
		if other == id {
			return nil
		}
	}
	holder := k.holder[id]
	delete(k.holder, id)
	return k.store.Drop(k.prefix + holder)
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
	files = map[string]int{}
	for _, f := range p.Files() {
		if name, ours := strings.CutPrefix(f.Name, prefix); ours && !strings.HasPrefix(name, notePrefix) {
			if files[name], err = p.TakeAny(f.Name); err != nil {
				return nil, files, err
			}
		}
	}
	for alias, of := range n.Aliases {
		held, there := files[of]
		if !there {
			return nil, files, fmt.Errorf("%q, which stands for %q: %w", of, alias, parcel.ErrMissing)
		}
		if files[alias], err = unix.FcntlInt(uintptr(held), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			delete(files, alias)
			return nil, files, err
		}
	}
	return n.State, files, nil
}
