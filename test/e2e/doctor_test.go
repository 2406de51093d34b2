package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rscctl/rscctl/controller/doctor"
	"github.com/rscctl/rscctl/test/netnstest"
)

// inside runs the product in a side's namespace, as another user where uid is not 0.
func inside(t *testing.T, s *netnstest.Side, uid uint32, args ...string) (out, errs string, code int) {
	t.Helper()
	file, err := os.Open(product)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// By descriptor: another user may not walk to the file.
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := s.NS.Run(cmd); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// An operator looks, mends, looks again, mends again and takes it back, without a controller.
func TestDoctorMendsAndTakesItBack(t *testing.T) {
	netnstest.Need(t, netnstest.BPF, netnstest.AFXDP, netnstest.Tool("ethtool"))
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, KeepTxVLAN: true})
	state := filepath.Join(t.TempDir(), "state")
	run := func(want int, args ...string) (r doctor.Report) {
		t.Helper()
		out, errs, code := inside(t, n.B, 0, append([]string{"doctor", "--state", state, "-o", "json"}, args...)...)
		if code != want || json.Unmarshal([]byte(out), &r) != nil || r.Schema != 2 || (errs != "") != (code != 0) {
			t.Fatalf("%q: exit %d: %s%s", args, code, out, errs)
		}
		return r
	}
	severity := func(r doctor.Report, id string) doctor.Severity {
		for _, f := range r.Findings {
			if f.ID == id {
				return f.Severity
			}
		}
		t.Fatalf("no %s in %+v", id, r.Findings)
		return ""
	}
	before := n.A.Output(t, "ethtool", "-k", n.A.Dev)
	first := 0
	if netnstest.Kernel(6, 8).Check() != nil { // where XDP cannot read a tag beside the frame, a sender that leaves it there is an error
		first = 1
	}
	if r := run(first, n.B.Dev); severity(r, "peer.tx_checksum") != doctor.Warning || (severity(r, "peer.tx_vlan") == doctor.Error) != (first == 1) {
		t.Errorf("%+v", r)
	}
	if r := run(0, n.B.Dev, "--fix"); severity(r, "peer.tx_checksum") != doctor.OK || len(r.Fixed) == 0 {
		t.Errorf("%+v", r)
	}
	if r := run(0, "--fix", n.B.Dev); len(r.Fixed) != 0 {
		t.Errorf("fixed twice: %q", r.Fixed)
	}
	if r := run(0, "--undo"); len(r.Undone) == 0 || n.A.Output(t, "ethtool", "-k", n.A.Dev) != before {
		t.Errorf("undone %q, and it is not as before", r.Undone)
	}
	if r := run(0, "--undo"); len(r.Undone) != 0 {
		t.Errorf("undone twice: %q", r.Undone)
	}
	if r := run(1, "nosuch0"); severity(r, "iface.uplink") != doctor.Error {
		t.Errorf("%+v", r)
	}
	if r := run(1, "lo"); severity(r, "iface.uplink") != doctor.Error {
		t.Errorf("%+v", r)
	}
	n.B.Output(t, "ip", "link", "set", "dev", n.B.Dev, "mtu", "20000")
	if r := run(1, n.B.Dev); severity(r, "iface.mtu") != doctor.Error {
		t.Errorf("%+v", r)
	}
}

// Who is not root gets an answer, and what could not be seen is said. A controller of his does not say that it is ready.
func TestWithoutRootDoctorAnswersAndRunSaysWhatIsMissing(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP)
	n := netnstest.Pair(t, netnstest.Options{})
	const nobody = 65534
	out, errs, code := inside(t, n.B, nobody, "doctor", n.B.Dev)
	if code != 0 || errs != "" || !strings.Contains(out, "you are not root") || !strings.Contains(out, "not looked at") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	out, errs, code = inside(t, n.B, nobody, "doctor", n.B.Dev, "--fix", "--state", "/proc/nothing")
	if code > 1 || strings.Contains(out, "fixed  ") {
		t.Errorf("--fix: exit %d: %s%s", code, out, errs)
	}
	out, errs, code = inside(t, n.B, nobody, "run", "--socket", "/tmp/never.sock", "--state", "/tmp/never")
	if code != 1 || out != "" || strings.Count(errs, "\n") != 1 || strings.Contains(errs, "ready") {
		t.Errorf("run: exit %d: %s%s", code, out, errs)
	}
	for _, word := range []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "as root"} {
		if !strings.Contains(errs, word) {
			t.Errorf("run does not name %s: %s", word, errs)
		}
	}
}
