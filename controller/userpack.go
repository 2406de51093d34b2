package controller

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/vhost"
)

func (k *userKind) prepare(c *Controller, uplink *netdev.Facts) {
	k.cfg.MTU, k.cfg.Memory, k.keeps = k.mostMTU(uplink.MTU), c.memory, c.survivor
}

// pack stops the port between two messages of its front-end, which goes on waiting for the next answer, and between two bursts of
// its rings.
func (k *userKind) pack(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	state, files, err := k.port.Load().Pack()
	if err != nil {
		return err
	}
	return errors.Join(vm.putPort(p, a.tag, &state, files), k.keeper().leave())
}

// show describes the port between two messages of its front-end.
func (k *userKind) show(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	state, files, err := k.port.Load().Describe()
	if err != nil {
		return err
	}
	return vm.putPort(p, a.tag, &state, files)
}

// putPort puts a port into a parcel. The files are taken over.
func (vm *packedVM) putPort(p *parcel.Parcel, tag string, state *vhost.PortState, files []vhost.NamedFile) (err error) {
	u := &packedUser{Files: map[string]string{}}
	for _, f := range files {
		name, kerr := p.Keep(tag+"."+f.Name, f.FD)
		u.Files[f.Name] = name
		err = errors.Join(err, kerr, unix.Close(f.FD))
	}
	b, merr := json.Marshal(state)
	u.Port, vm.User = b, u
	return errors.Join(err, merr)
}

// keep: the port keeps what is its own by itself, as its front-end speaks.
func (k *userKind) keep(_ *attachment, _ bag, vm *packedVM) error {
	vm.User = &packedUser{}
	return k.port.Load().Noted()
}

func (k *userKind) build(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	if vm.User == nil {
		return fmt.Errorf("vhost-user port: %w", parcel.ErrMissing)
	}
	body, byName, err := vm.User.take(p, vm.Tag)
	files := make([]vhost.NamedFile, 0, len(byName))
	for name, fd := range byName {
		files = append(files, vhost.NamedFile{Name: name, FD: fd})
		vm.held = append(vm.held, keptAs(name, memoryID(fd)))
	}
	if err == nil {
		k.state, err = vhost.ReadPortState(body)
	}
	if err == nil {
		err = k.wire(a)
	}
	if keeper := k.keeper(); keeper != nil {
		keeper.had(files)
	}
	if err != nil {
		for _, f := range files {
			err = errors.Join(err, unix.Close(f.FD))
		}
		return err
	}
	k.built, err = vhost.Prepare(k.cfg, k.state, files)
	return err
}

func (k *userKind) fits(vm *packedVM) bool {
	state, err := vhost.ReadPortState(vm.User.Port)
	if err != nil || !k.built.Fits(&state) {
		return false
	}
	k.state = state
	return true
}

func (k *userKind) takeOver(a *attachment) error {
	built := k.built
	k.built = nil
	port, err := built.Start(&k.state)
	if err != nil {
		return err
	}
	return k.steer(a, port)
}

func (k *userKind) forsake(*attachment) error {
	if k.built != nil {
		k.built.Close()
		k.built = nil
	}
	var err error
	if port := k.port.Load(); port != nil { // it runs, and what followed has failed
		var files []vhost.NamedFile
		_, files, err = port.Pack()
		for _, f := range files {
			err = errors.Join(err, unix.Close(f.FD))
		}
	}
	return errors.Join(err, k.keeper().leave())
}

// keeper is what the port keeps itself with, nil for nothing.
func (k *userKind) keeper() *portKeeper {
	keeper, _ := k.cfg.Keep.(*portKeeper)
	return keeper
}

// take takes the port's state and files: those that pack put in, or those that the port kept. What is in files is the caller's, also
// with an error.
func (u *packedUser) take(p *parcel.Parcel, tag string) (state []byte, files map[string]int, err error) {
	if len(u.Port) == 0 {
		return takePort(p, tag)
	}
	files = map[string]int{}
	for name, file := range u.Files {
		fd, err := p.TakeAny(file)
		if err != nil {
			return nil, files, err
		}
		files[name] = fd
	}
	return u.Port, files, nil
}
