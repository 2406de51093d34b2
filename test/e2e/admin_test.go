package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// says runs a verb that has to end with a code and to say all these words, failures in one line.
func (r *rig) says(code int, words []string, args ...string) {
	r.t.Helper()
	out, got := r.cli(args...)
	if got != code || code != 0 && strings.Count(out, "\n") != 1 {
		r.t.Errorf("rscctl %s: exit %d, want %d, failures in one line:\n%s", strings.Join(args, " "), got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			r.t.Errorf("rscctl %s: no %q in\n%s", strings.Join(args, " "), w, out)
		}
	}
}

// logs waits for a text in the controller's log, which is read by a goroutine of its own.
func (r *rig) logs(text string) {
	r.t.Helper()
	r.eventually("the log says "+text, func() error {
		if !strings.Contains(r.log.String(), text) {
			return errors.New("it does not")
		}
		return nil
	})
}

// portOf is what status says of a VM, nil when it is not attached.
func (r *rig) portOf(vm string) *api.Port {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	for _, i := range st.Interfaces {
		for k := range i.Ports {
			if i.Ports[k].VM == vm {
				return &i.Ports[k]
			}
		}
	}
	return nil
}

// What is attached already in the same way is done; what differs is changed, the policy without a break, and what cannot be had leaves the
// VM as it was.
func TestAttachedAgainAVMIsWhatItIsToBe(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	const name = "web 1 (blue)+2" // as libvirt allows
	socket := filepath.Join(r.dir, "web.sock")
	attach := func(extra ...string) []string {
		return append([]string{"attach", dev, "--vm", name, "--mac", macA, "--vhost-user", socket}, extra...)
	}
	r.must(attach()...)
	r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)})
	running := func() error {
		if p := r.portOf(name); p == nil || p.State != api.PortRunning {
			return fmt.Errorf("%+v", p)
		}
		return nil
	}
	r.eventually("the guest runs", running)
	r.logs(`msg="guest running"`)
	if n := strings.Count(r.log.String(), `msg="guest running"`); n != 1 {
		t.Errorf("the log says %d times that the guest runs", n)
	}
	r.says(0, []string{"in this way already"}, attach()...)
	r.says(0, []string{"would change", "hold: adaptive -> 20us"}, attach("--hold", "20us", "--dry-run")...)
	r.says(0, []string{"hold: adaptive -> 20us"}, attach("--hold", "20us")...)
	r.says(0, []string{"in this way already"}, attach()...) // what is not said of the policy stays
	if p := r.portOf(name); p.Policy.HoldNS != 20000 || p.State != api.PortRunning {
		t.Errorf("%+v", p)
	}
	r.says(1, []string{"folder", "is unchanged"}, "attach", dev, "--vm", name, "--mac", macA, "--vhost-user", filepath.Join(r.dir, "no", "web.sock"))
	r.says(1, []string{"folder", "is unchanged"}, "attach", dev, "--vm", name, "--mac", macA, "--vhost-user", filepath.Join(r.dir, "no", "web.sock"), "--dry-run")
	if running() != nil {
		t.Error("a request that cannot be met took the VM off")
	}
	r.says(1, []string{"already taken", "'rscctl detach " + dev + " --vm '" + name + "''"}, "attach", dev, "--vm", name, "--mac", macB, "--vhost-user", socket)
	r.says(1, []string{"socket " + socket, "already taken by VM " + name}, "attach", dev, "--vm", "other", "--mac", macB, "--vhost-user", socket)
	r.says(0, []string{"isolate: false -> true"}, attach("--isolate")...)
	if running() != nil {
		t.Error("the VM was taken off to isolate it")
	}
	r.says(0, []string{"any-memory: false -> true"}, attach("--any-memory")...)
	if p := r.portOf(name); p == nil || !p.Isolated || p.Policy.HoldNS != 20000 {
		t.Errorf("%+v", p)
	}
	r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)})
	r.eventually("a guest runs behind the changed VM", running)

	// A crash knows the VM as it is by now.
	r.kill()
	r.start()
	if p := r.portOf(name); p == nil || !p.Isolated || p.Policy.HoldNS != 20000 {
		t.Errorf("after a crash: %+v", p)
	}
	r.must("detach", dev)
}

// A VM that waits is tried at once by attach, in the same form or another.
func TestAttachTriesAVMThatWaits(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	r.attach("a", macA)
	socket := filepath.Join(r.dir, "a.sock")
	r.stop()
	other, err := os.Create(socket) // in the way
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	r.start()
	r.says(1, []string{"it waits for " + dev, "not a socket"}, "policy", "get", "a")
	r.says(1, []string{"waits on as it was"}, "attach", dev, "--vm", "a", "--mac", macA, "--vhost-user", socket)
	r.says(0, []string{"attached a"}, "attach", dev, "--vm", "a", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "b.sock"))
	if p := r.portOf("a"); p == nil || p.Socket != filepath.Join(r.dir, "b.sock") {
		t.Errorf("%+v", p)
	}
}

// Of many who ask for the same at once each is told that it is done, and of those who contradict one another one wins.
func TestTwoOperatorsAtOnce(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	line := func(i int) []string {
		return []string{"attach", dev, "--vm", "a", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "a.sock"), "--hold", fmt.Sprintf("%dus", i)}
	}
	each := func(n int, do func(i int)) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { do(i) })
		}
		wg.Wait()
	}
	each(8, func(int) { r.says(0, nil, line(5)...) })
	each(8, func(i int) { r.says(0, nil, line(i+1)...) })
	if p := r.portOf("a"); p == nil || p.Policy.HoldNS < 1000 || p.Policy.HoldNS > 8000 {
		t.Errorf("%+v", p)
	}
	var mu sync.Mutex
	codes := map[int]int{}
	each(8, func(int) {
		_, code := r.cli("detach", dev, "--vm", "a")
		mu.Lock()
		codes[code]++
		mu.Unlock()
	})
	if codes[0] != 1 || codes[1] != 7 {
		t.Errorf("exit codes of 8 who detach one VM: %v", codes)
	}
	each(8, func(i int) {
		if i%2 == 0 {
			r.cli(line(i + 1)...)
		} else {
			r.cli("detach", dev)
		}
	})
	r.must(line(1)...)
	r.must("detach", dev)
	r.untouched(t)
}

// The default policy is that of VMs to come, survives a restart, and is in the way of nobody's own.
func TestTheDefaultPolicyIsThatOfVMsToCome(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.attach("before", macA)
	r.must("policy", "set", "--default", "--hold", "10us", "--exclude-port", "22")
	r.must("policy", "set", "before", "--profile", "rsc")
	r.logs("profile=rsc in_effect=off") // what was asked for, and what is in force
	r.says(2, []string{"10ms"}, "policy", "set", "--default", "--hold", "1s")
	r.stop()
	r.start()
	r.attach("after", macB, "--max-segments", "8")
	hold := func(vm string) int64 {
		var p api.PolicyResponse
		r.json(&p, "policy", "get", vm)
		return p.Policy.HoldNS
	}
	if b, a := hold("before"), hold("after"); b != api.AdaptiveHold.Nanoseconds() || a != 10000 {
		t.Errorf("hold before %d, after %d ns", b, a)
	}
	r.must("policy", "reset", "before")
	if b := hold("before"); b != 10000 {
		t.Errorf("reset to %d ns", b)
	}
	r.must("policy", "reset", "--default")
	if d := hold("--default"); d != api.AdaptiveHold.Nanoseconds() {
		t.Errorf("the product's default is %d ns", d)
	}
	// What get prints, set takes, and flags beside it win.
	file := filepath.Join(r.dir, "policy.json")
	if err := os.WriteFile(file, []byte(r.must("policy", "get", "after", "--json")), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must("policy", "set", "before", "-f", file, "--hold", "7us")
	var p api.PolicyResponse
	r.json(&p, "policy", "get", "before")
	if p.Policy.MaxSegments != 8 || p.Policy.HoldNS != 7000 || len(p.Policy.ExcludePorts) != 1 {
		t.Errorf("%+v", p.Policy)
	}
}

// Names of what is not there are answered with what was meant, and with exit code 1.
func TestNearMissesAreAnswered(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	r.attach("web1", macA)
	for _, verb := range []string{"flows --vm web2", "stats --vm web2", "policy get web2", "policy set web2 --hold 1us", "why web2", "detach " + dev + " --vm web2"} {
		r.says(1, []string{"web2", "no such VM", "did you mean web1?"}, strings.Fields(verb)...)
	}
	near := dev[:len(dev)-1] + "x"
	for _, verb := range []string{"status " + near, "flows --iface " + near, "detach " + near, "attach " + near + " --vm x --mac " + macB + " --vhost-user " + filepath.Join(r.dir, "x")} {
		r.says(1, []string{near, "did you mean " + dev + "?"}, strings.Fields(verb)...)
	}
	r.says(1, []string{"frobnicate"}, "flows", "--vm", "frobnicate")
}

// Members of the socket's group look; they change things only where the controller was started so. Who did what is in the log, and the
// group is there again after a restart.
func TestTheSocketsGroupLooksAndChangesNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	const gid = 54321
	for dir := r.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) { // t.TempDir lets nobody else in
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	as := func(gid uint32, args ...string) (string, int) {
		cmd := exec.Command(product, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54322, Gid: gid}}
		cmd.Env = append(os.Environ(), "RSCCTL_SOCKET="+filepath.Join(r.dir, "ctl.sock"))
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	if st, err := os.Stat(product); err != nil || st.Mode()&0o001 == 0 {
		t.Fatalf("%s: %v", product, err)
	}
	if err := os.Chmod(filepath.Dir(product), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, write := range []bool{false, true} {
		r.stop()
		r.flags = []string{"--socket-group", fmt.Sprint(gid)}
		if write {
			r.flags = append(r.flags, "--group-may-write")
		}
		r.start()
		r.must("attach", r.net.B.Dev, "--vm", "a", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "a.sock"))
		if out, code := as(gid, "status"); code != 0 {
			t.Errorf("status as a member: exit %d: %s", code, out)
		}
		if out, code := as(gid+1, "status"); code != 1 || !strings.Contains(out, "permission denied") {
			t.Errorf("status as a stranger: exit %d: %s", code, out)
		}
		out, code := as(gid, "policy", "set", "a", "--hold", "9us")
		if write && code != 0 || !write && (code != 1 || !strings.Contains(out, "--group-may-write")) {
			t.Errorf("policy set as a member who may write (%t): exit %d: %s", write, code, out)
		}
		want := `msg="request refused" path=/v1/policy uid=54322 `
		if write {
			want = `verb="policy set" vm=a`
		}
		r.logs(want)
		r.logs("uid=0")
	}
}

// Two controllers never share pins, and what one that has ended left is taken away by purge.
func TestPinsHaveOneControllerAndPurgeTakesThemAway(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.pinned()
	r.attach("a", macA)
	pins := filepath.Join(r.dir, "bpffs")
	second := func() (string, int) {
		cmd := exec.Command(product, "run", "--socket", filepath.Join(r.dir, "2.sock"), "--state", filepath.Join(r.dir, "2"), "--bpffs", pins)
		var out []byte
		r.net.B.Do(t, func() error {
			out, _ = cmd.CombinedOutput() // its exit code tells
			return nil
		})
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := second(); code != 1 || !strings.Contains(out, "held by another controller") || !strings.Contains(out, "--bpffs") {
		t.Errorf("a second controller with the same pins: exit %d: %s", code, out)
	}
	purge := append([]string{"purge"}, r.places()...)
	r.says(1, []string{"held by another controller"}, purge...)
	if p := r.portOf("a"); p == nil {
		t.Error("purge took a running controller's VM away")
	}
	r.kill()
	out := ""
	if err := r.net.B.NS.Do(func() error {
		b, err := exec.Command(product, append(purge, "--dry-run")...).CombinedOutput()
		if err == nil {
			_, err = os.Stat(filepath.Join(pins, "flows"))
		}
		if err == nil {
			b, err = exec.Command(product, purge...).CombinedOutput()
		}
		out = string(b)
		return err
	}); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(out, "VM a of "+r.net.B.Dev) {
		t.Errorf("purge says\n%s", out)
	}
	for _, gone := range []string{filepath.Join(r.dir, "state"), filepath.Join(pins, "flows"), filepath.Join(r.dir, "ctl.sock"), filepath.Join(r.dir, "a.sock")} {
		if _, err := os.Lstat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	r.start()
	r.untouched(t)
}

// What the operator set goes over to an heir, and so do the pins: while the two are there, and afterwards, no third one has them.
func TestAnHeirHasWhatTheOperatorSet(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.flags = []string{"--socket-group", "54321", "--metrics", metricsAt}
	r.pinned()
	r.attach("a", macA)
	r.must("policy", "set", "--default", "--hold", "7us")
	r.replace()
	var p api.PolicyResponse
	r.json(&p, "policy", "get", "--default")
	if p.Policy.HoldNS != 7000 {
		t.Errorf("the default policy was not inherited: %+v", p.Policy)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(r.dir, "ctl.sock"), &st); err != nil || st.Gid != 54321 {
		t.Errorf("group %d, %v", st.Gid, err)
	}
	if _, err := r.scraped(); err != nil {
		t.Errorf("metrics: %v", err)
	}
	if strings.Contains(r.log.String(), "a crash would end") {
		t.Errorf("nothing is kept for a crash:\n%s", r.log)
	}
	dir := t.TempDir()
	r.eventually("the heir has the pins", func() error {
		var out []byte
		r.net.B.Do(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			own := exec.CommandContext(ctx, product, "run", "--socket", filepath.Join(dir, "s"), "--state", filepath.Join(dir, "state"), "--bpffs", filepath.Join(r.dir, "bpffs"))
			own.Cancel = func() error { return own.Process.Signal(syscall.SIGTERM) }
			own.WaitDelay = 5 * time.Second
			out, _ = own.CombinedOutput()
			return nil
		})
		if !strings.Contains(string(out), "held by another controller") {
			return fmt.Errorf("a third controller had them: %s", out)
		}
		return nil
	})
	if r.portOf("a") == nil {
		t.Error("the VM is gone")
	}
}
