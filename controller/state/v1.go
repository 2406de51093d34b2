package state

import (
	"bytes"
	"cmp"
	"encoding/json"
)

// The form of schema 1, which held requests as the control socket takes them and the undo list inside. It never changes again.
type v1File struct {
	Interfaces []struct {
		Name  string `json:"name"`
		Ports []struct {
			Attach v1Attach `json:"attach"`
			Policy Policy   `json:"policy"` // the same fields then and now
		} `json:"ports"`
	} `json:"interfaces"`
}

type v1Attach struct {
	VM          string `json:"vm"`
	MAC         string `json:"mac"`
	VLAN        int    `json:"vlan"`
	VhostUser   string `json:"vhost_user"`
	Connect     bool   `json:"connect"`
	Tap         string `json:"tap"`
	Bypass      bool   `json:"bypass_filters"`
	AllowSpoof  bool   `json:"allow_spoof"`
	FixOffloads bool   `json:"fix_offloads"`
	SocketMode  string `json:"socket_mode"`
	SocketOwner string `json:"socket_owner"`
}

type v1Change struct {
	Link    string `json:"link"`
	Via     string `json:"via"`
	Feature string `json:"feature"`
	Why     string `json:"why"`
	Undo    struct {
		Was map[string]bool `json:"was"`
	} `json:"undo"`
}

func decodeV1(b []byte) (State, error) {
	var f v1File
	if err := json.Unmarshal(b, &f); err != nil {
		return State{}, err
	}
	var s State
	for _, i := range f.Interfaces {
		to := Interface{Name: i.Name}
		for _, p := range i.Ports {
			a := p.Attach
			v := VM{Name: a.VM, MAC: a.MAC, VLAN: a.VLAN, FixOffloads: a.FixOffloads, Policy: p.Policy}
			if a.Tap != "" {
				v.Tap = &Tap{Device: a.Tap, BypassFilters: a.Bypass}
			}
			if a.VhostUser != "" {
				v.VhostUser = &VhostUser{Socket: a.VhostUser, Connect: a.Connect, Mode: a.SocketMode, Owner: a.SocketOwner, AllowSpoof: a.AllowSpoof}
			}
			to.VMs = append(to.VMs, v)
		}
		s.Interfaces = append(s.Interfaces, to)
	}
	return s, nil
}

// v1Changes gathers the changes to undo from a file of schema 1, whatever else of it is damaged: it looks for each list of
// changes by its key and takes the entries that are whole. A quotation mark inside a JSON string is escaped, so no text of an
// operator can look like the key. Nothing else is taken from a damaged file.
func v1Changes(b []byte) (out []Change) {
	const key = `"changes"`
	var head struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(b, &head) == nil && head.Schema > 1 { // whole, and of a form that keeps its undo list elsewhere
		return nil
	}
	for {
		at := bytes.Index(b, []byte(key))
		if at < 0 {
			return out
		}
		b = b[at+len(key):]
		rest := bytes.TrimLeft(b, " \t\r\n")
		if len(rest) == 0 || rest[0] != ':' { // a value that reads "changes"
			continue
		}
		d := json.NewDecoder(bytes.NewReader(rest[1:]))
		if t, err := d.Token(); err != nil || t != json.Delim('[') {
			continue
		}
		for d.More() {
			var c v1Change
			if d.Decode(&c) != nil {
				break
			}
			ch := Change{Kind: Offload, Iface: cmp.Or(c.Via, c.Link), Link: c.Link, Via: c.Via, Feature: c.Feature, Was: c.Undo.Was, Why: c.Why}
			if ch.check() == nil {
				out = append(out, ch)
			}
		}
	}
}
