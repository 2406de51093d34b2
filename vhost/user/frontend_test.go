package user

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// backend answers a Frontend as a script says: what it returns is sent as it is.
func backend(t *testing.T, edit func(*FrontendConfig), answer func(m *Message) (flags uint32, r Request, payload []byte)) (*Frontend, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "front")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := FrontendConfig{Socket: filepath.Join(dir, "s"), Features: 1 << virtio.FVersion1, Memory: 1 << 20, Timeout: 200 * time.Millisecond}
	if edit != nil {
		edit(&cfg)
	}
	l, err := listenUnix(cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		conn := NewConn(c)
		defer conn.Close()
		var m Message
		for conn.Recv(&m) == nil {
			m.CloseFDs()
			if flags, r, p := answer(&m); p != nil {
				_ = conn.Send(r, flags, p)
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	f, err := OpenFrontend(ctx, cfg)
	if err == nil {
		t.Cleanup(func() { _ = f.Close() })
	}
	return f, err
}

func listenUnix(path string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

func TestAFrontendIsAsStrictAsQEMU(t *testing.T) {
	offered := u64(protocolF | 1<<virtio.FVersion1)
	for name, tt := range map[string]struct {
		flags   uint32
		request Request
		payload []byte
		want    error
	}{
		"need-reply echoed": {0xd, GetFeatures, offered, ErrReply},
		"no reply flag":     {0x1, GetFeatures, offered, ErrReply},
		"other request":     {0x5, GetProtocolFeatures, offered, ErrReply},
		"short":             {0x5, GetFeatures, offered[:4], ErrReply},
		"long":              {0x5, GetFeatures, append(offered, 0), ErrReply},
		"version 2":         {0x6, GetFeatures, offered, ErrBadHeader},
		"silence":           {0, 0, nil, ErrTimeout},
	} {
		_, err := backend(t, nil, func(m *Message) (uint32, Request, []byte) { return tt.flags, tt.request, tt.payload })
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFrontendRefusesABackendThatLacksANeed(t *testing.T) {
	plain := func(m *Message) (uint32, Request, []byte) {
		switch m.Request {
		case GetFeatures:
			return 5, m.Request, u64(protocolF | 1<<virtio.FVersion1)
		case GetProtocolFeatures, GetQueueNum:
			return 5, m.Request, u64(1)
		}
		return 0, 0, nil
	}
	if _, err := backend(t, func(c *FrontendConfig) { c.Need = 1 << virtio.FMrgRxbuf }, plain); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
	if _, err := backend(t, func(c *FrontendConfig) { c.Pairs = 2 }, plain); !errors.Is(err, ErrNotOffered) {
		t.Error(err)
	}
	f, err := backend(t, nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	if f.Features() != 1<<virtio.FVersion1 || f.Protocol() != 1<<ProtoMQ {
		t.Errorf("negotiated %v, %#x", f.Features().Names(), f.Protocol())
	}
	if _, _, err := f.Alloc(2<<20, 1); !errors.Is(err, ErrNoMemory) {
		t.Error(err)
	}
}
