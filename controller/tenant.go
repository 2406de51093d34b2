package controller

import (
	"cmp"
	"fmt"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// checkTenant refuses what a kind of port cannot keep a VM to, in words that name who can. What a VM on its own tap sends goes by the
// kernel's path: nothing of it passes us.
func checkTenant(k kind, req *api.AttachRequest, p api.Policy, kept api.Addresses) error {
	if !k.bridged() {
		return nil
	}
	tap := cmp.Or(req.Tap, "TAP")
	switch {
	case p.Isolate:
		return fmt.Errorf("isolate: %w: the kernel's bridge does it for a VM on its own tap: 'bridge link set dev %s isolated on'", ErrUsage, tap)
	case p.RateTx != 0 || p.RateRx != 0:
		return fmt.Errorf("rate: %w: what a VM on its own tap sends and gets goes by the kernel: limit it there, by libvirt's <bandwidth> or "+
			"'tc qdisc add dev %s root tbf', or attach the VM by --vhost-user", ErrUsage, tap)
	case len(kept.MACs) > 0:
		return fmt.Errorf("mac: %w: a VM on its own tap has its further addresses on the kernel's path, and needs none named: give one --mac", ErrUsage)
	case len(kept.IPs) > 0:
		return fmt.Errorf("ip: %w: what a VM sends through its own tap goes by the kernel: have its addresses enforced there, by libvirt's "+
			"<filterref filter='clean-traffic'/> or nftables rules of the family bridge for iifname %s, or attach the VM by --vhost-user", ErrUsage, tap)
	}
	return nil
}

// rates are the buckets of a VM, one for all its queues. A policy that leaves a rate as it is leaves its bucket as full as it is.
type rates struct{ tx, rx *datapath.Bucket }

// bucket is the one for a rate, nil for none: the one that is there, or a new one in its place.
func bucket(at **datapath.Bucket, rate, burst uint64) *datapath.Bucket {
	if rate == 0 {
		*at = nil
	} else if burst = api.BurstFor(rate, burst); !(*at).Is(rate, burst) {
		*at = datapath.NewBucket(rate, burst)
	}
	return *at
}

// portConfig is what the workers must know of the VM. The caller holds a.mu, or is the only one who knows a.
func (a *attachment) portConfig() datapath.PortConfig {
	bridged := a.kind.bridged()
	cfg := datapath.PortConfig{
		Index: a.idx, Generation: a.gen, Addr: a.addr, AllowSpoof: a.req.AllowSpoof, MTU: a.req.MTU, Isolated: a.policy.Isolate, Host: a.policy.Host && !bridged, Bridged: bridged, NoteSenders: bridged,
	}
	for _, addr := range a.addrs()[1:] {
		cfg.MACs = append(cfg.MACs, addr.MAC)
	}
	cfg.TxRate = bucket(&a.rates.tx, a.policy.RateTx, a.policy.BurstTx)
	cfg.RxRate = bucket(&a.rates.rx, a.policy.RateRx, a.policy.BurstRx)
	if len(a.kept.IPs) > 0 {
		ips, _ := api.ParseIPs(a.kept.IPs) // they were checked; were they not, nothing would be allowed
		cfg.Sources = datapath.NewSources(ips)
	}
	return cfg
}

// amend tells every worker what the VM is kept to now. The caller holds a.mu.
func (a *attachment) amend() error {
	cfg := a.portConfig()
	return a.up.each(func(q *queue) error { return q.Amend(cfg) })
}
