package parcel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// The form on the wire: magic, the length of the head in bytes (32 bits, big endian), the head as JSON, and then the descriptors in
// the head's order, at most maxBatch with each byte of descriptorMark.
const (
	magic          = "rscctl-parcel\n"
	descriptorMark = 'd'
	maxBatch       = 64       // the kernel takes 253 in one message (SCM_MAX_FD)
	maxHead        = 32 << 20 // bytes
	maxFiles       = 1 << 16
)

// head is what precedes the descriptors.
type head struct {
	Version int             `json:"version"`
	From    string          `json:"from"`
	Files   []headFile      `json:"files"`
	State   json.RawMessage `json:"state"`
}

type headFile struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
}

// Send writes the parcel. The descriptors stay the parcel's: the receiver has duplicates of what has not been taken.
func (p *Parcel) Send(c *net.UnixConn) error {
	files := p.Files()
	h := head{Version: p.Version, From: p.From, State: p.State, Files: make([]headFile, len(files))}
	for i, f := range files {
		h.Files[i] = headFile{f.Name, f.Kind}
	}
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("parcel: state: %w", err)
	}
	b := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(len(body)))
	if _, err := c.Write(append(b, body...)); err != nil {
		return fmt.Errorf("parcel: send: %w", err)
	}
	for len(files) > 0 {
		n := min(len(files), maxBatch)
		fds := make([]int, n)
		for i := range fds {
			fds[i] = files[i].FD
		}
		files = files[n:]
		if _, _, err := c.WriteMsgUnix([]byte{descriptorMark}, unix.UnixRights(fds...), nil); err != nil {
			return fmt.Errorf("parcel: send descriptors: %w", err)
		}
	}
	return nil
}

// Receive reads a parcel. With an error no descriptor stays open. Errors: ErrCut, ErrDamaged, ErrNewer, ErrMissing, ErrTwice, ErrKind,
// and those of the connection.
func Receive(c *net.UnixConn) (*Parcel, error) {
	b := make([]byte, len(magic)+4)
	if err := readFull(c, b); err != nil {
		return nil, err
	}
	if string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("parcel: no parcel: %w", ErrDamaged)
	}
	n := binary.BigEndian.Uint32(b[len(magic):])
	if n > maxHead {
		return nil, fmt.Errorf("parcel: head of %d bytes: %w", n, ErrDamaged)
	}
	body := make([]byte, n)
	if err := readFull(c, body); err != nil {
		return nil, err
	}
	h, err := readHead(body)
	if err != nil {
		return nil, err
	}
	p := &Parcel{Version: h.Version, From: h.From, State: h.State, files: map[string]*File{}}
	fds, err := receiveFDs(c, len(h.Files))
	if err == nil {
		err = p.fill(h.Files, fds)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return p, nil
}

// readHead decodes a head. The version decides: what a newer one may have otherwise is not looked at.
func readHead(body []byte) (h head, err error) {
	whole := json.Unmarshal(body, &h) // guests wait: it is not read twice when all is well
	if whole == nil && h.Version >= 1 && h.Version <= Version && len(h.Files) <= maxFiles {
		return h, nil
	}
	var v struct {
		Version int    `json:"version"`
		From    string `json:"from"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return h, fmt.Errorf("parcel: head: %w: %w", ErrDamaged, err)
	}
	if v.Version > Version {
		return h, fmt.Errorf("parcel: form %d of rscctl %s, this one reads up to %d: %w: stop the old one and start this one for a downgrade", v.Version, v.From, Version, ErrNewer)
	}
	return h, fmt.Errorf("parcel: head: %w", ErrDamaged)
}

// fill names the descriptors that came, which are the parcel's unless there is an error.
func (p *Parcel) fill(names []headFile, fds []int) error {
	seen := map[uint64]string{}
	for i, f := range names {
		if p.files[f.Name] != nil {
			return fmt.Errorf("parcel: %q: %w", f.Name, ErrTwice)
		}
		if kind := KindOf(fds[i]); kind != f.Kind {
			return fmt.Errorf("parcel: %q is %s, not %s: %w", f.Name, kind, f.Kind, ErrKind)
		}
		var st unix.Stat_t
		if unix.Fstat(fds[i], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK { // two hands on one socket mix up what comes from it
			if other := seen[st.Ino]; other != "" {
				return fmt.Errorf("parcel: %q and %q are one socket: %w", other, f.Name, ErrTwice)
			}
			seen[st.Ino] = f.Name
		}
		p.files[f.Name] = &File{Name: f.Name, Kind: f.Kind, FD: fds[i]}
		p.order = append(p.order, f.Name)
	}
	return nil
}

// receiveFDs collects exactly want descriptors. What has come is returned also with an error.
func receiveFDs(c *net.UnixConn, want int) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxBatch))
	var mark [1]byte
	for len(fds) < want {
		n, oobn, flags, _, err := c.ReadMsgUnix(mark[:], oob)
		got, bad := parseRights(oob[:oobn])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return fds, cut(err)
		case n == 0:
			return fds, fmt.Errorf("parcel: %d of %d descriptors: %w", len(fds), want, ErrCut)
		case bad != nil || flags&unix.MSG_CTRUNC != 0 || mark[0] != descriptorMark:
			return fds, fmt.Errorf("parcel: descriptors: %w", ErrDamaged)
		case len(got) == 0:
			return fds, fmt.Errorf("parcel: %d of %d descriptors: %w", len(fds), want, ErrMissing)
		}
	}
	if len(fds) > want {
		return fds, fmt.Errorf("parcel: %d descriptors for %d names: %w", len(fds), want, ErrDamaged)
	}
	return fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	blocks, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range blocks {
		got, err := unix.ParseUnixRights(&blocks[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func readFull(c *net.UnixConn, b []byte) error {
	_, err := io.ReadFull(c, b)
	return cut(err)
}

// cut tells the end of a connection apart from its other errors.
func cut(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("parcel: the sender went away: %w", ErrCut)
	}
	return fmt.Errorf("parcel: receive: %w", err)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
