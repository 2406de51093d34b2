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
	k.cfg.MTU, k.cfg.Memory = uplink.MTU, c.memory
}

// pack stops the port between two messages of its front-end, which goes on waiting for the next answer, and between two bursts of
// its rings.
func (k *userKind) pack(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	state, files, err := k.port.Load().Pack()
	if err != nil {
		return err
	}
	u := &packedUser{Files: map[string]string{}}
	for _, f := range files {
		name, kerr := p.Keep(a.req.VM+"."+f.Name, f.FD)
		u.Files[f.Name] = name
		err = errors.Join(err, kerr, unix.Close(f.FD))
	}
	b, merr := json.Marshal(state)
	u.Port, vm.User = b, u
	return errors.Join(err, merr)
}

func (k *userKind) unpack(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	if vm.User == nil {
		return fmt.Errorf("vhost-user port: %w", parcel.ErrMissing)
	}
	state, err := vhost.ReadPortState(vm.User.Port)
	if err != nil {
		return err
	}
	var files []vhost.NamedFile
	for name, file := range vm.User.Files {
		fd, err := p.TakeAny(file)
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, unix.Close(f.FD))
			}
			return err
		}
		files = append(files, vhost.NamedFile{Name: name, FD: fd})
	}
	k.wire(a)
	port, err := vhost.Unpack(k.cfg, state, files)
	if err != nil {
		return err
	}
	return k.steer(a, port)
}
