package e2e

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/netnstest"
)

// What others can do in a loop - a front-end that says rubbish, the other end of a link, who may look - adds a bounded number of lines to the log,
// and each that was left out is counted.
func TestWhatAPeerProvokesDoesNotFillTheLog(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	socket := r.attach("a", macA)
	const times, most = 300, 60 // 10 lines a minute of each kind
	word := func(values ...uint32) (b []byte) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	for name, do := range map[string]func(i int){
		"rubbish": func(i int) {
			c, err := net.Dial("unix", socket)
			if err != nil {
				return // more than the backlog wait: they come after
			}
			defer c.Close()
			// Nothing, half a header, an unknown request, one that is too long, bytes of no protocol.
			_, _ = c.Write([][]byte{nil, word(1), word(9999, 1, 0), word(5, 1, 1<<31), []byte(strings.Repeat("\xff\x1b[31m\n", 20))}[i%5]) // it may hang up first
			_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond))                                                                    // it may wait for more, too
			_, _ = c.Read(make([]byte, 1))
		},
		"link": func(i int) {
			r.net.A.Do(t, func() error {
				l, err := netlink.LinkByName(r.net.A.Dev)
				if err != nil {
					return err
				}
				if i%2 == 0 {
					return netlink.LinkSetDown(l)
				}
				return netlink.LinkSetUp(l)
			})
		},
		"requests": func(int) {
			c, err := net.Dial("unix", filepath.Join(r.dir, "ctl.sock"))
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Write([]byte("GET /v1/trace?vm=a HTTP/1.1\r\nHost: x\r\n\r\n"))
			_, _ = c.Read(make([]byte, 1))
		},
	} {
		before := strings.Count(r.log.String(), "\n")
		for i := range times {
			do(i)
		}
		r.must("status") // whose answer comes after what was done
		if n := strings.Count(r.log.String(), "\n") - before; n > most {
			t.Errorf("%s, %d times: %d lines in the log", name, times, n)
		}
	}
	r.logs("link is down")
	if log := r.log.String(); strings.Contains(log, "\x1b") {
		t.Errorf("the log:\n%s", log)
	}
}
