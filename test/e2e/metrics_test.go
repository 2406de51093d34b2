package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

const (
	metricsAt    = "127.0.0.1:9777"
	prometheusAt = "127.0.0.1:9778"
)

// prometheusTools finds what test/vm/setup.sh prom has unpacked, or what is installed.
func prometheusTools(t *testing.T) {
	t.Helper()
	dir, err := filepath.Abs("../vm/.cache/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	netnstest.Need(t, netnstest.Tool("prometheus"), netnstest.Tool("promtool"))
}

// scraped gets the metrics as a scraper in the controller's namespace does.
func (r *rig) scraped() (text []byte, err error) {
	err = r.net.B.NS.Do(func() error {
		conn, err := net.Dial("tcp", metricsAt)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, err = io.ReadAll(answer.Body); err == nil && answer.StatusCode != http.StatusOK {
			err = errors.New(answer.Status)
		}
		return err
	})
	return text, err
}

// promtool runs in the controller's namespace.
func (r *rig) promtool(in []byte, args ...string) (out string, err error) {
	cmd := exec.Command("promtool", args...)
	var b bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &b, &b
	err = r.net.B.NS.Run(cmd)
	return b.String(), err
}

// The alerts fire when their test file says, and then only.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	prometheusTools(t)
	if out, err := exec.Command("promtool", "test", "rules", "../../packaging/prometheus/rscctl.rules_test.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A real Prometheus scrapes a controller that serves a VM, finds nothing to complain about in the metrics and the alert rules, and
// knows what was merged. A controller without --metrics listens nowhere.
func TestAPrometheusKnowsWhatWasMerged(t *testing.T) {
	prometheusTools(t)
	r, vm := oneTapVM(t, netnstest.Options{NoIPv6: true})
	r.net.B.Output(t, "ip", "link", "set", "lo", "up")
	if _, err := r.scraped(); err == nil {
		t.Error("somebody listens though nobody asked")
	}
	r.stop()
	r.flags = []string{"--metrics", metricsAt}
	r.start()
	r.steered()
	r.merged(r.net.A, vm, 8<<20, false)

	text, err := r.scraped()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.promtool(text, "check", "metrics"); err != nil || strings.Contains(out, "rscctl") {
		t.Errorf("check metrics: %v\n%s", err, out)
	}
	rules, err := filepath.Abs("../../packaging/prometheus/rscctl.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(r.dir, "prometheus.yml")
	yml := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n", rules) +
		fmt.Sprintf("- {job_name: rscctl, static_configs: [{targets: [%q]}]}\n- {job_name: itself, static_configs: [{targets: [%q]}]}\n", metricsAt, prometheusAt)
	if err := os.WriteFile(config, []byte(yml), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := r.promtool(nil, "check", "config", config); err != nil { // with the rules that it names
		t.Fatalf("check config: %v\n%s", err, out)
	}

	var log syncBuffer
	p := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(r.dir, "tsdb"), "--web.listen-address="+prometheusAt)
	p.Stdout, p.Stderr = &log, &log
	if err := r.net.B.NS.Start(p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			t.Logf("prometheus:\n%s", &log)
		}
	})
	end := time.Now().Add(time.Minute)
	for _, ask := range []string{
		`up{job="rscctl"} == 1`,
		`rscctl_vm_merged_packets_total{vm="vm0"} / rscctl_vm_superframes_total > 4`,
		`rscctl_vm_frame_bytes_sum{vm="vm0"} > 8e6`,
		`rscctl_vm_unexplained_packets == 0`,
		`prometheus_rule_group_last_evaluation_samples{rule_group=~".*rscctl"} == 0`, // evaluated, and nothing is wrong
	} {
		for {
			out, err := r.promtool(nil, "query", "instant", "http://"+prometheusAt, ask)
			if err == nil && strings.Contains(out, "=>") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v %s", ask, err, out)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}
