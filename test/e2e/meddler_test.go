package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A rogue whose part begins so stands between a controller and its heir, passes on what they say, and spoils a parcel: behind it are which
// one, and how.
const (
	meddles         = "meddles: "
	firstParcel     = "first, "
	secondParcel    = "second, "
	meddleSocketEnv = "RSCCTL_E2E_MEDDLE_SOCKET" // where the heir asks
)

// spoilt is a parcel on its way, as controller/parcel sends it.
type spoilt struct {
	head struct {
		Version int             `json:"version"`
		From    string          `json:"from"`
		Files   []spoiltFile    `json:"files"`
		State   json.RawMessage `json:"state"`
	}
	fds []int
	cut bool // half of its head comes
}

type spoiltFile struct {
	Name string      `json:"name"`
	Kind parcel.Kind `json:"kind"`
}

// named is the place of the first file whose name ends so.
func (s *spoilt) named(end string) int {
	return slices.IndexFunc(s.head.Files, func(f spoiltFile) bool { return strings.HasSuffix(f.Name, end) })
}

// spoilings are what becomes of a parcel, and what the heir says of it.
var spoilings = []struct {
	how   string
	do    func(s *spoilt)
	says  string
	first bool // of the second parcel it is nothing that an heir still takes
}{
	{"cut", func(s *spoilt) { s.cut = true }, "it is not whole", false},
	{"from the future", func(s *spoilt) { s.head.Version++ }, "stop the old one and start this one for a downgrade", false},
	{"no state", func(s *spoilt) { s.head.State = json.RawMessage("3") }, "it cannot be read", false},
	{"one missing", func(s *spoilt) { s.fds = s.fds[:len(s.fds)-1] }, "it is not whole", false},
	{"one of another kind", func(s *spoilt) { s.fds[s.named(".xsk")] = s.fds[s.named(".umem")] }, "is memory file, not xdp socket", false},
	{"a socket twice", func(s *spoilt) { s.fds[s.named(".wire")] = s.fds[s.named(".group")] }, "are one socket", false},
	{"a name twice", func(s *spoilt) { s.head.Files[s.named(".owners")].Name = s.head.Files[s.named(".umem")].Name }, "a descriptor is there twice", false},
	{"a name that nobody knows", func(s *spoilt) { s.head.Files[s.named(".umem")].Name = "nobody" }, `.umem": a descriptor is missing`, true},
	{"one that says that it is of another kind", func(s *spoilt) {
		s.head.Files[s.named(".xsk")].Kind = parcel.Memory
		s.fds[s.named(".xsk")] = s.fds[s.named(".umem")]
	}, "is memory file, not xdp socket", true},
	{"a memory twice", func(s *spoilt) { s.fds[s.named(".owners")] = s.fds[s.named(".umem")] }, "do not make this queue's AF_XDP socket", true},
}

// read takes a parcel off a connection.
func (s *spoilt) read(c *net.UnixConn) error {
	p, err := parcel.Receive(c)
	if err != nil {
		return err
	}
	s.head.Version, s.head.From, s.head.State = p.Version, p.From, p.State
	for _, f := range p.Files() {
		s.head.Files, s.fds = append(s.head.Files, spoiltFile{f.Name, f.Kind}), append(s.fds, f.FD)
	}
	return nil
}

func (s *spoilt) send(c *net.UnixConn) error {
	body, err := json.Marshal(s.head)
	if err != nil {
		return err
	}
	b := append(binary.BigEndian.AppendUint32([]byte("rscctl-parcel\n"), uint32(len(body))), body...)
	if s.cut {
		b, s.fds = b[:len(b)/2], nil
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	for fds := range slices.Chunk(s.fds, 64) {
		if _, _, err := c.WriteMsgUnix([]byte("d"), unix.UnixRights(fds...), nil); err != nil {
			return err
		}
	}
	return nil
}

// meddle plays its part until the controller, to which it is the heir, ends it.
func meddle(part string) error {
	ln, err := net.Listen("unix", os.Getenv(meddleSocketEnv))
	if err != nil {
		return err
	}
	asks, err := ln.Accept()
	if err != nil {
		return err
	}
	gives, err := net.Dial("unix", os.Getenv(rogueSocketEnv))
	if err != nil {
		return err
	}
	heir, old := asks.(*net.UnixConn), gives.(*net.UnixConn)
	req, err := http.ReadRequest(bufio.NewReader(heir))
	if err == nil {
		err = req.Write(old)
	}
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytewise{old}), nil)
	if err != nil {
		return err
	}
	head, err := httputil.DumpResponse(resp, false)
	if err == nil {
		_, err = heir.Write(head)
	}
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(old, heir) }()
	how, first := strings.CutPrefix(part, firstParcel)
	if !first {
		how = strings.TrimPrefix(part, secondParcel)
		var whole spoilt
		if err := errors.Join(whole.read(old), whole.send(heir)); err != nil {
			return err
		}
	}
	var s spoilt
	if err := s.read(old); err != nil {
		return err
	}
	for _, c := range spoilings {
		if c.how == how {
			c.do(&s)
		}
	}
	_ = errors.Join(s.send(heir), heir.CloseWrite()) // it may refuse what comes first
	time.Sleep(time.Hour)
	return nil
}

// A parcel that is cut, from the future, with a descriptor too few, twice or of the wrong kind is refused by the heir with the reason, whichever of
// the two it is, and the controller goes on: same process, same connections, traffic both ways, and every packet explained.
func TestASpoiltParcelChangesNothing(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	was := r.worker()
	try := func(t *testing.T, part, says string) {
		socket := filepath.Join(t.TempDir(), "s")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), rogueEnv+"="+meddles+part, rogueSocketEnv+"="+filepath.Join(r.dir, "ctl.sock"), meddleSocketEnv+"="+socket)
		var trouble syncBuffer
		cmd.Stderr = &trouble
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.eventually("somebody listens", func() error { _, err := os.Stat(socket); return err })
		if said := r.refusedHeir(socket); !strings.Contains(said, says) || !strings.Contains(said, "the controller before goes on") {
			t.Errorf("the heir does not say %q: %s", says, said)
		}
		if _ = cmd.Wait(); trouble.String() != "" {
			t.Errorf("between the two: %s", &trouble)
		}
		if now := r.worker(); now != was {
			t.Fatalf("process %d works, %d did", now, was)
		}
		g.calm(t)
		netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, time.Minute)
		netnstest.Bulk(t, r.net.A, vm.Guest, 1<<20, false, time.Minute)
		netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
	}
	for _, c := range spoilings {
		t.Run(firstParcel+c.how, func(t *testing.T) { try(t, firstParcel+c.how, c.says) })
		if !c.first {
			t.Run(secondParcel+c.how, func(t *testing.T) { try(t, secondParcel+c.how, c.says) })
		}
	}
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
	r.replace() // and a proper one can still come
	g.calm(t)
}
