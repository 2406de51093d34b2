package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

// tenantFlags say what a VM is kept to, beside its policy: what is one VM's and has no default.
func tenantFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "ip", Category: "tenant:", Usage: "the VM may send from `ADDR[/LEN]` alone, and claim it by ARP and ND; may be repeated, " +
			"or listed with commas, for up to 64 of both families; none: from any", DefaultText: "none"},
	}
}

// ipList reads --ip. nil: it was not given; an empty list takes the VM's off.
func ipList(c *cli.Context) (*[]string, error) {
	if !c.IsSet("ip") {
		return nil, nil
	}
	return listOf(c.StringSlice("ip"), api.ParseIPs, api.IPTexts)
}

// listOf reads the words of a flag and writes them again as they are usually written; none alone is an empty list.
func listOf[T any](words []string, parse func([]string) ([]T, error), texts func([]T) []string) (*[]string, error) {
	if len(words) == 1 && words[0] == "none" {
		words = nil
	}
	all, err := parse(words)
	if err != nil {
		return nil, usagef("--%s", err)
	}
	list := texts(all)
	return &list, nil
}

// tenantNotes say what a VM is kept to, of what is not as it comes.
func tenantNotes(port *api.Port) (notes []string) {
	if len(port.MACs) > 0 {
		notes = append(notes, "its further addresses: "+strings.Join(port.MACs, ", "))
	}
	if len(port.IPs) > 0 {
		notes = append(notes, "sends from these alone: "+strings.Join(port.IPs, ", "))
	}
	pol := &port.Policy
	if pol.RateTx > 0 {
		notes = append(notes, "sends at most "+rateWords(pol.RateTx, pol.BurstTx))
	}
	if pol.RateRx > 0 {
		notes = append(notes, "gets at most "+rateWords(pol.RateRx, pol.BurstRx))
	}
	if pol.Isolate {
		notes = append(notes, "apart from the VMs beside it")
	}
	if !pol.Host && port.Feed == api.FeedVhostUser {
		notes = append(notes, "apart from this host")
	}
	return notes
}

// furtherFlag names the addresses of a VM beside the one that it is attached with.
func furtherFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "mac", Category: "tenant:", Usage: "all further `MAC` addresses of the VM, beside the one that it is attached with; may be repeated, " +
		"for up to 15; none: it has no other", DefaultText: "none"}
}

// macList reads further addresses.
func macList(words []string) (*[]string, error) {
	return listOf(words, api.ParseMACs, api.MACTexts)
}

func firstOf(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0]
}
