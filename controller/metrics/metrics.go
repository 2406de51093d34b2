// Package metrics shows what the controller counts to Prometheus. A scrape is one look at the workers, as `rscctl stats` is:
// nothing is counted twice and nothing is counted per packet for it. No metric has a label per flow, address or port.
package metrics

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rscctl/rscctl/controller/api"
)

// Look is one look at a controller.
type Look struct {
	Status api.Status
	Stats  api.Stats
}

// Bounds of what scrapers may cost at once.
const (
	scrapesAtOnce = 4
	scrapeWithin  = 10 * time.Second
)

// Handler answers scrapes with what look sees. version is that of the binary. It is safe for concurrent use if look is.
func Handler(version string, look func() (Look, error)) http.Handler {
	look = seldom(look)
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{version: version, look: look})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeWithin})
}

// lookEvery is how old a look may be: whoever reaches the address may ask as often as he likes, and the workers are asked no more.
const lookEvery = time.Second

// seldom makes one look serve all who ask within lookEvery. One that fails serves nobody else.
func seldom(look func() (Look, error)) func() (Look, error) {
	var mu sync.Mutex
	var last Look
	var at time.Time
	return func() (Look, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) < lookEvery {
			return last, nil
		}
		l, err := look()
		if err == nil {
			last, at = l, time.Now()
		}
		return l, err
	}
}

type collector struct {
	version string
	look    func() (Look, error)
}

// Describe describes what every scrape has.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range vmCounters {
		ch <- m.desc
	}
	for _, m := range vmReasons {
		ch <- m.desc
	}
	for _, m := range queueCounters {
		ch <- m.desc
	}
	for _, d := range []*prometheus.Desc{buildInfo, stalled, heldPackets, unexplained, frameBytes, holdSeconds, vmRunning, vmWaiting, queueChunks, queueHeld, queueSlots, queueUp, queueCPU, outcomes} {
		ch <- d
	}
}

// Collect takes one look. Without one the scrape fails with the reason, so that nobody takes an old value for a new one.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	l, err := c.look()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(buildInfo, fmt.Errorf("metrics: %w", err))
		return
	}
	gauge(ch, buildInfo, 1, c.version)
	for i := range l.Stats.VMs {
		collectVM(ch, &l.Stats.VMs[i])
	}
	for i := range l.Status.Interfaces {
		f := &l.Status.Interfaces[i]
		for n := range f.Ports {
			p := &f.Ports[n]
			gauge(ch, vmRunning, truth(p.State == api.PortRunning && p.StopReason == ""), f.Name, p.VM)
		}
		for n := range f.Queues {
			collectQueue(ch, f.Name, &f.Queues[n])
		}
	}
	for _, w := range l.Status.Waiting {
		gauge(ch, vmWaiting, 1, w.Iface, w.VM)
	}
	for name, n := range l.Stats.Outcomes {
		counter(ch, outcomes, n, name)
	}
}

func collectVM(ch chan<- prometheus.Metric, v *api.VMStats) {
	for _, m := range vmCounters {
		counter(ch, m.desc, m.of(v), v.Iface, v.VM)
	}
	for _, m := range vmReasons {
		for reason, n := range m.of(v) {
			counter(ch, m.desc, n, v.Iface, v.VM, reason)
		}
	}
	ch <- prometheus.MustNewConstMetric(stalled, prometheus.CounterValue, float64(v.StalledNS)/1e9, v.Iface, v.VM)
	gauge(ch, heldPackets, float64(v.Held), v.Iface, v.VM)
	gauge(ch, unexplained, float64(v.Unexplained), v.Iface, v.VM)
	histogram(ch, frameBytes, v.FrameBytes, 1, v.FrameBytesSum, v.Iface, v.VM)
	histogram(ch, holdSeconds, v.HoldNS, 1e9, v.HoldNSSum, v.Iface, v.VM)
}

func collectQueue(ch chan<- prometheus.Metric, iface string, q *api.Queue) {
	id := strconv.Itoa(q.ID)
	for _, m := range queueCounters {
		counter(ch, m.desc, m.of(q), iface, id)
	}
	ch <- prometheus.MustNewConstMetric(queueCPU, prometheus.CounterValue, float64(q.CPUNS)/1e9, iface, id)
	gauge(ch, queueChunks, float64(q.Chunks), iface, id)
	gauge(ch, queueHeld, float64(q.Held), iface, id)
	gauge(ch, queueSlots, float64(q.OpenSlots), iface, id)
	gauge(ch, queueUp, truth(q.Worker == api.WorkerRunning), iface, id)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, n uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// histogram turns counts between bounds into Prometheus' counts below bounds. per is how many of the bounds' units the metric's is.
func histogram(ch chan<- prometheus.Metric, d *prometheus.Desc, h []api.Bucket, per float64, sum uint64, labels ...string) {
	below, total := map[float64]uint64{}, uint64(0)
	for _, b := range h {
		if total += b.Count; b.Le > 0 {
			below[float64(b.Le)/per] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(d, total, float64(sum)/per, below, labels...)
}

func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
