package systemd

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// The versions of the two packages of this tree that test/hostvm builds.
const (
	first  = "1.0.0"
	second = "1.0.1"
)

const (
	webMAC = "52:54:00:00:00:01"
	dbMAC  = "52:54:00:00:00:02"
	web2   = "52:54:00:00:00:03"
)

// The life of the package on a host with VMs, from its installation to its purge. Each step stands on the ones before.
func TestThePackagesLife(t *testing.T) {
	h := newHost(t)
	h.network("vnet0", "fe"+dbMAC[2:])
	pid, restarts := 0, ""
	var web *guest
	step := func(name string, fn func()) {
		t.Helper()
		if !t.Run(name, func(t *testing.T) { h.t = t; fn() }) {
			t.Fatalf("%s failed: what follows stands on it", name)
		}
		h.t = t
	}
	step("installation starts the service", func() {
		h.must("dpkg -i " + h.packages + "/" + first + ".deb")
		h.must("systemctl is-enabled rscctl")
		pid = h.serves(first, 0)
		if h.property("NotifyAccess") != "all" || h.property("StatusText") != "serving" {
			h.t.Errorf("notify access %q, status %q", h.property("NotifyAccess"), h.property("StatusText"))
		}
		h.must("test -s /usr/share/man/man1/rscctl.1.gz && test -e /etc/rscctl/rscctl.yaml")
		caps := h.must(fmt.Sprintf("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/%d/status", pid))
		const six = "000000c000007001" // NET_ADMIN, NET_RAW, IPC_LOCK, CHOWN, PERFMON and BPF
		if want := "CapEff:\t" + six + "\nCapBnd:\t" + six + "\nNoNewPrivs:\t1\nSeccomp:\t2"; caps != want {
			h.t.Errorf("privileges:\n%s", caps)
		}
	})
	step("VMs are attached under the sandbox", func() {
		h.must("rscctl doctor up0 --fix; rscctl doctor up1 --fix; true")
		h.must("rscctl attach up0 --vm web --mac " + webMAC + " --vhost-user /run/rscctl/web.sock --socket-owner daemon:daemon")
		h.must("rscctl attach up1 --vm db --mac " + dbMAC + " --tap vnet0")
		h.serves(first, 0, "db", "web")
		if owner := h.must("stat -c '%U:%G %a' /run/rscctl/web.sock"); owner != "daemon:daemon 660" {
			h.t.Errorf("socket: %s", owner)
		}
		h.must("test -e /sys/fs/bpf/rscctl/flows")
		if p := h.port("db"); p.Feed != api.FeedVhostNet {
			h.t.Errorf("feed %s (%s): the device is not let in", p.Feed, p.FeedNote)
		}
		h.must("rscctl flows; rscctl stats >/dev/null; rscctl why web; rscctl export | grep -q web")
		if log := h.journal(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			h.t.Errorf("something is amiss under the sandbox:\n%s", log)
		}
		if text, err := h.try("ls -1 /proc/" + fmt.Sprint(pid) + "/fd | wc -l"); err == nil {
			h.t.Logf("descriptors with a VM on vhost-user and one on a tap, two interfaces of one queue: %s", text)
		}
	})
	step("sockets elsewhere are refused with the folders that are allowed", func() {
		h.must("mkdir -p /var/lib/rscctl-sockets /home/qemu")
		for _, folder := range []string{"/run", "/tmp", "/home/qemu", "/var/lib/rscctl-sockets"} {
			h.refused("rscctl attach up0 --vm web2 --mac "+web2+" --vhost-user "+folder+"/web2.sock", "below /run/rscctl only", "ReadWritePaths="+folder)
		}
		h.must("mkdir -p /etc/systemd/system/rscctl.service.d && cp /usr/share/doc/rscctl/examples/*.conf /etc/systemd/system/rscctl.service.d/ && systemctl daemon-reload")
		_, _ = h.try("systemctl restart rscctl") // an emulated machine may need more than 2 s to go on: it is started once more then
		pid = h.serves(first, pid, "db", "web")
		h.must("rscctl attach up0 --vm web2 --mac " + web2 + " --vhost-user /var/lib/rscctl-sockets/web2.sock && rscctl detach up0 --vm web2")
		scrape(h, "127.0.0.1:9100")
	})
	step("a reload brings in what the file describes", func() {
		config := "version: 1\nvms:\n  - {name: web2, iface: up0, mac: '" + web2 + "', vhost-user: /run/rscctl/web2.sock}\n"
		if err := os.WriteFile("/etc/rscctl/rscctl.yaml", []byte(config), 0o644); err != nil {
			h.t.Fatal(err)
		}
		restarts = h.property("NRestarts")
		h.eventually("the reload", func() error { _, err := h.try("systemctl reload rscctl"); return err })
		pid = h.serves(first, pid, "db", "web", "web2") // by another process, which systemd takes for the service
		if n := h.property("NRestarts"); n != restarts {
			h.t.Errorf("systemd started it again %s times\n%s", n, h.journal())
		}
	})
	step("who would take over from a shell, or as another service, is told the command that does it", func() {
		h.refused("rscctl run --replace", "systemctl reload rscctl")
		h.must(`printf '[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/rscctl run --replace\n' > /run/systemd/system/rival.service && systemctl daemon-reload`)
		h.refused("systemctl start rival || { journalctl --no-pager -o cat -u rival; false; }", "rival.service", "systemctl reload rscctl.service")
		h.must("rm /run/systemd/system/rival.service && systemctl reset-failed rival && systemctl daemon-reload")
		if now := h.serves(first, 0, "db", "web", "web2"); now != pid {
			h.t.Errorf("process %d is the service, %d was", now, pid)
		}
	})
	step("a newer package takes over while a VM receives", func() {
		web = h.boots(t, "/run/rscctl/web.sock", webMAC)
		var out string
		web.through(h, func() { out = h.must("dpkg -i --force-confold " + h.packages + "/" + second + ".deb") })
		if strings.Contains(out, "could not be replaced") { // 2 s are little for an emulated machine beside others: the old process goes on
			h.t.Logf("at the first try: %s", out)
			h.eventually("the reload", func() error { _, err := h.try("systemctl reload rscctl"); return err }) // without load
			web.through(h, func() {})
		}
		pid = h.serves(second, pid, "db", "web", "web2")
		if n := h.property("NRestarts"); n != restarts {
			h.t.Errorf("it was no upgrade but a start: %s restarts\n%s", n, h.journal())
		}
		h.t.Log(h.must("journalctl --no-pager -o cat -u rscctl | grep 'msg=replaced'"))
		if strings.Contains(out, "goes down") {
			h.t.Errorf("an upgrade says what a removal ends: %s", out)
		}
		h.must("test -S /run/rscctl/web.sock && grep -q web2 /etc/rscctl/rscctl.yaml")
	})
	step("a crash is followed by a start", func() {
		restarts = h.property("NRestarts")
		web.through(h, func() {
			h.signal(pid, syscall.SIGKILL)
			pid = h.serves(second, pid, "db", "web", "web2")
		})
		if h.property("NRestarts") == restarts {
			h.t.Error("it was not systemd that started it again")
		}
		h.must("journalctl --no-pager -u rscctl | grep -q 'gone on where the process before stood'")
	})
	step("a restart goes on with the same connections", func() {
		web.through(h, func() {
			h.must("systemctl restart rscctl")
			pid = h.serves(second, pid, "db", "web", "web2")
		})
		h.must("journalctl --no-pager -u rscctl | grep -q 'left to the next process'")
	})
	step("a process that hangs is ended and started again", func() {
		web.through(h, func() {
			h.signal(pid, syscall.SIGSTOP)
			pid = h.serves(second, pid, "db", "web", "web2")
		})
		h.must("journalctl --no-pager -u rscctl | grep -q 'Watchdog timeout'")
		h.must("journalctl --no-pager -u rscctl | grep -q 'goroutine .*running\\|SIGABRT'") // where it stood
	})
	step("a crash loop gives everything up", func() {
		h.crashLoop()
		if kept := h.property("NFileDescriptorStore"); kept != "0" {
			h.t.Errorf("%s descriptors are still kept", kept)
		}
		h.noProgram("up0", "up1")
		h.must("systemctl reset-failed rscctl && systemctl start rscctl")
		pid = h.serves(second, pid, "db", "web", "web2")
	})
	step("removal says what it ends, and leaves the state", func() {
		out := h.must("dpkg -r rscctl")
		for _, say := range []string{"link of these VMs goes down", "vhost-user sockets: web web2", "these VMs go on", "taps: db"} {
			if !strings.Contains(out, say) {
				h.t.Errorf("%q is not in\n%s", say, out)
			}
		}
		h.must("test -s /var/lib/rscctl/state.json || ls /var/lib/rscctl/* && test ! -e /usr/bin/rscctl && test ! -e /run/rscctl")
		h.noProgram("up0", "up1")
	})
	step("what was removed goes on after an installation", func() {
		h.must("dpkg -i --force-confold " + h.packages + "/" + second + ".deb")
		pid = h.serves(second, 0, "db", "web", "web2")
	})
	step("who took over has its time to undo all when the service is stopped", func() {
		h.eventually("the reload", func() error { _, err := h.try("systemctl reload rscctl"); return err })
		h.serves(second, pid, "db", "web", "web2")
		h.must("systemctl stop rscctl")
		log := h.must("journalctl --no-pager -u rscctl")
		if strings.Contains(log, "not our child") { // systemd does not wait for the end of another's child
			h.t.Errorf("who took over had another parent:\n%s", log)
		}
		if log = log[max(strings.LastIndex(log, "msg=replaced"), 0):]; strings.Contains(log, "signal SIGKILL") {
			h.t.Errorf("killed while it ended:\n%s", log)
		}
		h.noProgram("up0", "up1")
		h.must("systemctl start rscctl")
	})
	step("purge leaves nothing", func() {
		h.must("install -D -m 0755 /usr/share/rscctl/libvirt/qemu /etc/libvirt/hooks/qemu.d/rscctl") // as an administrator does
		h.must("dpkg -P rscctl")
		h.must("rmdir /var/lib/rscctl-sockets") // the test's own
		if left := h.leftovers(); len(left) > 0 {
			h.t.Errorf("left behind: %q", left)
		}
		if out, err := h.try("systemctl cat rscctl"); err == nil {
			h.t.Errorf("the unit is still known: %s", out)
		}
		if failed := h.must("systemctl --failed --plain --no-legend"); failed != "" {
			h.t.Errorf("failed units: %s", failed)
		}
	})
}
