package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/terminal"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// top at a real controller: bulk TCP is seen as merged while it runs, with its reason and the worker's processor time; a VM whose
// front-end is missing is marked; the screen outlives a controller that is killed, and goes on with the next one.
func TestTopShowsWhatAControllerDoes(t *testing.T) {
	netnstest.Need(t, netnstest.Device("/dev/ptmx")) // a terminal
	r := newRig(t, netnstest.Options{Queues: 2, NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.attach("absent", "52:54:00:00:00:0b")

	cmd := exec.Command(product, "top", "--interval", "100ms", "--sort", "name")
	cmd.Env = append(os.Environ(), "RSCCTL_SOCKET="+filepath.Join(r.dir, "ctl.sock"), "TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR=1")
	term := terminal.Start(t, cmd, 80, 24)
	shows := func(what, pattern string) {
		t.Helper()
		re := regexp.MustCompile(pattern)
		term.Await(what, re.MatchString)
	}
	shows("both VMs", `(?m)^>x absent .* no front-end is.*\n   vm0 `)

	stop := make(chan struct{})
	done := r.transfers(g.side, stop)
	//           name   bit/s        pkt/s      frm/s      segments           hold            drop/s  why
	shows("merged traffic", `(?m)^   vm0 +[0-9.]+[MG] +[0-9.]+k +[0-9.]+k? +([2-9]|[1-9][0-9])(\.[0-9])? +[0-9.]+[num]s +\S+ [0-9]+% [a-z_]+`)
	shows("a worker's processor time", `(?m)^   \S+/[01] running +[1-9][0-9]*% +[0-9.]+k`)
	shows("what came before", `(?m)^   vm0 .*[▂▃▄▅▆▇█]$`)
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	shows("silence", `(?m)^   vm0 +0 +0 +0 +-`)

	term.Resize(20, 10)
	shows("a narrow terminal", `(?m)^   vm0 +0 +-$`)
	if lines := term.Lines(); len(lines) != 10 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range term.Lines() {
		if len([]rune(l)) > 20 {
			t.Errorf("wider than the terminal: %q", l)
		}
	}
	term.Resize(80, 24)

	r.kill()
	shows("that the controller is away", `(?m)^NO CONTROLLER .*no controller(.*\n)+   vm0 `)
	r.start()
	term.Await("that it is back", func(text string) bool {
		return !strings.Contains(text, "NO CONTROLLER") && strings.Contains(text, "vm0")
	})
	term.Type("q")
	if code := term.End(); code != 0 || term.Left() != "" {
		t.Errorf("exit %d, left changed: %q", code, term.Left())
	}
}
