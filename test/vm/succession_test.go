package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/peer"
)

// times is how often a test does something: a few times, or as often as a long run wants.
func times(few, many int) int {
	if os.Getenv(envLong) == "1" {
		return many
	}
	return few
}

// A guest of QEMU with traffic both ways notices neither upgrades nor crashes: QEMU keeps its connections, the guest its carrier, and every
// transfer arrives whole. And what happens on its side meanwhile and right after ends with a link that works, whatever the moment.
func TestARealGuestThroughUpgradesAndCrashes(t *testing.T) {
	needVM(t)
	l := newLab(t)
	v := l.boot(Options{})
	t.Run("under load", func(t *testing.T) { l.underLoad(t, v) })
	t.Run("restarts during upgrades", func(t *testing.T) { l.restartsDuringUpgrades(t, v) })
	t.Run("restarts during crashes", func(t *testing.T) { l.restartsDuringCrashes(t, v) })
	t.Run("another QEMU", func(t *testing.T) { l.anotherQEMU(t, v) })
}

func (l *lab) underLoad(t *testing.T, v *VM) {
	before, sockets := nic(t, v), connections(t, v)
	d := l.duplex(t, v)
	for range times(3, 20) {
		pause(100, 600)
		if err := l.replace(); err != nil {
			t.Error(err)
		}
	}
	for range times(1, 20) {
		pause(2500, 3000) // slower than a crash loop
		if err := l.crash(); err != nil {
			t.Error(err)
		}
	}
	d.end(t)
	after := nic(t, v)
	noErrors(t, framesBetween(before, after))
	if after.Losses != before.Losses {
		t.Errorf("the guest lost its carrier %d times", after.Losses-before.Losses)
	}
	l.kept(t, v, sockets)
}

func (l *lab) restartsDuringUpgrades(t *testing.T, v *VM) {
	sockets := connections(t, v)
	t.Run("driver reloaded", func(t *testing.T) {
		l.upgrading(t, func() {
			for range times(5, 40) {
				reload(t, v)
			}
			l.configure(v)
		})
		l.kept(t, v, sockets)
	})
	t.Run("driver reloaded right after", func(t *testing.T) {
		for range times(1, 10) {
			if err := l.replace(); err != nil {
				t.Fatal(err)
			}
			reload(t, v)
			l.configure(v)
		}
		l.kept(t, v, sockets)
	})
	t.Run("rebooted", func(t *testing.T) {
		for range times(1, 5) {
			l.upgrading(t, func() {
				reboot(t, v)
				l.configure(v)
			})
			l.kept(t, v, sockets)
		}
	})
}

// The process may die in the middle of a message: QEMU keeps its connection also then.
func (l *lab) restartsDuringCrashes(t *testing.T, v *VM) {
	sockets := connections(t, v)
	t.Run("driver reloaded", func(t *testing.T) {
		for range times(3, 20) {
			l.crashing(t, 200, func() {
				reload(t, v)
				reload(t, v)
			})
			l.configure(v)
		}
		l.kept(t, v, sockets)
	})
	t.Run("rebooted", func(t *testing.T) {
		needLong(t)
		for range 5 {
			l.crashing(t, 3000, func() { reboot(t, v) })
			l.configure(v)
			l.kept(t, v, sockets)
		}
	})
}

func (l *lab) anotherQEMU(t *testing.T, v *VM) {
	t.Run("during upgrades", func(t *testing.T) {
		for range times(1, 5) {
			l.upgrading(t, func() {
				pause(0, 300)
				v.Kill()
				v = l.boot(Options{})
			})
			l.transferBothWays(t, v)
		}
	})
	t.Run("after a crash of both", func(t *testing.T) {
		needLong(t)
		for range 5 {
			l.crashing(t, 20, v.Kill)
			v = l.boot(Options{})
			l.transferBothWays(t, v)
		}
	})
}

func reload(t *testing.T, v *VM) { do(t, v, 30*time.Second, control.OpRebind, nil, nil) }

func reboot(t *testing.T, v *VM) {
	do(t, v, 30*time.Second, control.OpReboot, nil, nil)
	ready(t, v)
}

// kept wants QEMU to have the sockets that it had, and a link that works.
func (l *lab) kept(t *testing.T, v *VM, sockets []string) {
	t.Helper()
	if now := connections(t, v); !slices.Equal(now, sockets) {
		t.Errorf("QEMU has other sockets, %v, than before, %v", now, sockets)
	}
	l.transferBothWays(t, v)
}

// pause waits for so many milliseconds, at random.
func pause(from, to int) { time.Sleep(time.Duration(from+rand.IntN(to-from)) * time.Millisecond) }

// replace starts a controller that takes over from the one that runs, and waits until that has ended by itself. After an error the
// controller is the one that lives.
func (l *lab) replace() error {
	heir, err := l.launch("--replace")
	if err != nil {
		return err
	}
	old := l.controller
	select {
	case <-old.done:
		l.controller = heir
		if old.err != nil {
			return fmt.Errorf("the controller that was replaced: %w", old.err)
		}
		return nil
	case <-heir.done:
		return fmt.Errorf("the heir ended: %w", errors.Join(heir.err, errors.New("the one before goes on")))
	case <-time.After(patience(30 * time.Second)):
		heir.kill()
		return errors.New("no end of the controller that was replaced")
	}
}

// upgrading replaces the controller over and over while what happens, at least twice in all.
func (l *lab) upgrading(t *testing.T, what func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for ending := false; !ending; n++ {
			select {
			case <-stop:
				ending = n > 0
			default:
			}
			pause(0, 300) // in which the guest gets on
			if err := l.replace(); err != nil {
				t.Errorf("upgrade %d: %v", n+1, err)
				break
			}
		}
		done <- n
	}()
	func() {
		defer func() {
			close(stop)
			t.Logf("%d upgrades", <-done)
		}()
		what()
	}()
}

// worker is the process that works: the one that was started is its keeper.
func (l *lab) worker() (int, error) {
	out, err := l.cli("status", "-o", "json")
	if err != nil {
		return 0, err
	}
	var st api.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return 0, err
	}
	if st.PID == l.controller.pid() {
		return 0, errors.New("the process that was started works itself: nothing outlives it")
	}
	return st.PID, nil
}

// crash kills the process that works, and waits for the next one.
func (l *lab) crash() error {
	was, err := l.worker()
	if err != nil {
		return err
	}
	return l.kill(was)
}

// kill is crash for who knows the process already, and the moment matters to.
func (l *lab) kill(was int) error {
	err := syscall.Kill(was, syscall.SIGKILL)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience(30 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var pid int
		if pid, err = l.worker(); err == nil && pid != was {
			return nil
		}
	}
	return fmt.Errorf("no process goes on where the one that was killed stood: %w", err)
}

// crashing kills the process that works some milliseconds, at most within, after what has begun. It waits before, so that no crash loop
// comes of it.
func (l *lab) crashing(t *testing.T, within int, what func()) {
	t.Helper()
	time.Sleep(2500 * time.Millisecond)
	was, err := l.worker()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		pause(0, within)
		done <- l.kill(was)
	}()
	defer func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	what()
}

// connections are the sockets that QEMU has, by the numbers of their inodes: a connection that was made again is another one.
func connections(t *testing.T, v *VM) []string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", v.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var sockets []string
	for _, fd := range links {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:") {
			sockets = append(sockets, to)
		}
	}
	if len(sockets) == 0 {
		t.Fatal("QEMU has no socket")
	}
	slices.Sort(sockets)
	return sockets
}

// transferBothWays shows that the link works.
func (l *lab) transferBothWays(t *testing.T, v *VM) {
	t.Helper()
	const bytes = 10e6
	seed := rand.Uint64()
	r, got := toGuest(t, v, load{from: l.a, to: guestIPv4, bytes: bytes, seed: seed})
	checkTransfer(t, "to the guest", r, seed, bytes)
	noErrors(t, got)
	r = fromGuest(t, v, l.a, l.a.IPv4.Addr().String(), seed+1, bytes)
	checkTransfer(t, "from the guest", r, seed+1, bytes)
}

// duplex is traffic both ways at once, transfer after transfer.
type duplex struct {
	stop     chan struct{}
	wg       sync.WaitGroup
	to, from int // whole transfers
}

func (l *lab) duplex(t *testing.T, v *VM) *duplex {
	t.Helper()
	const bytes = 10e6
	do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
	var in *net.TCPListener
	l.a.Do(t, func() (err error) {
		in, err = peer.Listen(net.JoinHostPort(l.a.IPv4.Addr().String(), "0"))
		return err
	})
	d := &duplex{stop: make(chan struct{})}
	d.again(&d.to, func(seed uint64) bool {
		got := receiveAsync(t, v, control.Receive{Port: guestPort, Timeout: transferWithin})
		_, err := send(load{from: l.a, to: guestIPv4, bytes: bytes, seed: seed})
		if err != nil {
			t.Errorf("sender: %v", err)
			return false
		}
		checkTransfer(t, "to the guest under way", <-got, seed, bytes)
		return true
	})
	d.again(&d.from, func(seed uint64) bool {
		r, err := receiveFrom(t.Context(), v, in, seed, bytes/2)
		if err != nil {
			t.Error(err)
			return false
		}
		checkTransfer(t, "from the guest under way", r, seed, bytes/2)
		return true
	})
	t.Cleanup(func() { in.Close() })
	return d
}

// again makes transfers until the end, or until one could not be made.
func (d *duplex) again(n *int, transfer func(seed uint64) bool) {
	d.wg.Go(func() {
		for seed := rand.Uint64(); transfer(seed); seed++ {
			*n++
			select {
			case <-d.stop:
				return
			default:
			}
		}
	})
}

// end waits for the transfers that are under way.
func (d *duplex) end(t *testing.T) {
	t.Helper()
	close(d.stop)
	d.wg.Wait()
	t.Logf("%d transfers to the guest, %d from it", d.to, d.from)
}
