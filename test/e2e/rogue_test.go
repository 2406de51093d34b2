package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// Environment of this binary when it plays an heir that does not do what an heir should.
const (
	rogueEnv       = "RSCCTL_E2E_ROGUE"
	rogueSocketEnv = "RSCCTL_E2E_ROGUE_SOCKET"
	rogueStateEnv  = "RSCCTL_E2E_ROGUE_STATE"
)

// rogue is such an heir. It ends with code 0 when it came as far as it meant to.
func rogue(how string) int {
	err := func() error {
		if part, ok := strings.CutPrefix(how, meddles); ok {
			return meddle(part)
		}
		nc, err := net.Dial("unix", os.Getenv(rogueSocketEnv))
		if err != nil {
			return err
		}
		conn := nc.(*net.UnixConn)
		state := os.Getenv(rogueStateEnv)
		req := api.ReplaceRequest{Version: "rogue", Parcel: parcel.Version, State: state, BPFFS: filepath.Join(filepath.Dir(state), "bpffs")}
		body, err := json.Marshal(req)
		if err != nil {
			return err
		}
		fmt.Fprintf(conn, "POST /v1/replace HTTP/1.1\r\nHost: rscctl\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(bytewise{conn}), nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("answered %s", resp.Status)
		}
		say := func(a any) error { return json.NewEncoder(conn).Encode(a) }
		cannot := func(why string) error {
			err := say(api.ReplaceAnswer{Error: why})
			time.Sleep(20 * time.Millisecond) // in which it says so where it was started
			return err
		}
		if how == "goes before anything came" {
			return nil
		}
		if _, err := parcel.Receive(conn); err != nil {
			return err
		}
		switch how {
		case "cannot":
			return cannot("the rogue is not in the mood")
		case "speaks nonsense":
			_, err := conn.Write([]byte("\x00\xff}}{"))
			return err
		}
		if err := say(api.ReplaceAnswer{Ready: true}); err != nil {
			return err
		}
		if how == "goes when it said that it is ready" {
			return nil
		}
		p, err := parcel.Receive(conn)
		if err != nil || len(p.Files()) == 0 {
			return fmt.Errorf("no parcel: %w", err)
		}
		switch how {
		case "dies with the parcel":
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "takes an interface with it":
			return vanish()
		case "cannot use the parcel":
			return cannot("the rogue dropped it")
		case "cannot write, and is slow":
			if err := say(api.ReplaceAnswer{Moving: true}); err != nil {
				return err
			}
			time.Sleep(3 * time.Second) // longer than guests may wait
			return cannot("the rogue's disk is full")
		}
		time.Sleep(time.Hour) // says nothing
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type bytewise struct{ *net.UnixConn }

func (b bytewise) Read(p []byte) (int, error) { return b.UnixConn.Read(p[:min(1, len(p))]) }

// Whatever an heir does wrong, and whenever it dies, the controller goes on as if nothing had been asked: same process, same
// connections, traffic both ways, and every packet explained. One that says nothing is ended first, one that says why it cannot ends by itself, and one for which no guest waits
// has its time.
func TestAnHeirThatCannotChangesNothing(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	was := r.worker()
	for _, how := range []string{
		"goes before anything came", "cannot", "speaks nonsense", "goes when it said that it is ready", "dies with the parcel", "cannot use the parcel", "cannot write, and is slow", "says nothing",
	} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), rogueEnv+"="+how, rogueSocketEnv+"="+filepath.Join(r.dir, "ctl.sock"), rogueStateEnv+"="+filepath.Join(r.dir, "state"))
			out, err := cmd.CombinedOutput()
			status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if killed := status.Signaled() && status.Signal() == syscall.SIGKILL; how == "says nothing" && !killed {
				t.Errorf("it was left alive: %v", err)
			} else if strings.HasPrefix(how, "cannot") && killed {
				t.Error("killed while it said where it was started why it cannot")
			} else if err != nil && !killed {
				t.Errorf("%v: %s", err, out)
			}
			r.eventually("the controller has said that it goes on", func() error {
				if strings.Count(r.log.String(), "this controller goes on") == 0 {
					return errNotYet
				}
				return nil
			})
			if now := r.worker(); now != was {
				t.Fatalf("process %d works, %d did", now, was)
			}
			g.calm(t)
			netnstest.Bulk(t, r.net.A, g.side, 2<<20, false, time.Minute)
			netnstest.Bulk(t, r.net.A, vm.Guest, 2<<20, false, time.Minute)
			netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
		})
	}
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
	r.replace() // and a proper one can still come
	g.calm(t)
}

// An heir that cannot read the state file says so before anything stops: front-ends are not even handed over and back.
func TestAnHeirThatCannotReadTheStateIsRefused(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	was := r.worker()
	file := filepath.Join(r.dir, "state", "state.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		strings.Replace(string(good), `"schema": 2`, `"schema": 99`, 1): "written by a newer version",
		string(good[:len(good)/2]):                                      "mend the file",
	} {
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if said := r.refusedHeir(filepath.Join(r.dir, "ctl.sock")); !strings.Contains(said, want) || !strings.Contains(said, "the controller before goes on") {
			t.Errorf("%q is not in %q", want, said)
		}
		g.calm(t)
	}
	if now := r.worker(); now != was || strings.Contains(r.log.String(), "taken over") {
		t.Errorf("process %d works, %d did:\n%s", now, was, r.log)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	r.replace()
	g.calm(t)
}

// An heir with other places, or of a version that reads older parcels only, is refused with what to do, before anything stops.
func TestAnHeirThatCannotBeOneIsRefused(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	for _, c := range []struct {
		name, want string
		flags      []string
	}{
		{"other places", "give the same", []string{"--socket", filepath.Join(r.dir, "ctl.sock"), "--state", t.TempDir()}},
		{"another network namespace", "network namespace", r.places()},
		{"nobody to replace", "no controller", []string{"--socket", filepath.Join(t.TempDir(), "nobody"), "--state", t.TempDir()}},
	} {
		out, code := r.cli(append([]string{"run", "--replace"}, c.flags...)...)
		if code == 0 || !strings.Contains(out, c.want) || strings.Count(strings.TrimSpace(out), "\n") > 0 {
			t.Errorf("%s: exit %d: %s", c.name, code, out)
		}
	}
	out, code := r.cli(append([]string{"run"}, r.places()...)...)
	if code == 0 || !strings.Contains(out, "held by another controller") {
		t.Errorf("a second controller: exit %d: %s", code, out)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "ctl.sock")); errors.Is(err, os.ErrNotExist) {
		t.Error("the socket has gone with those that were refused")
	}
}
