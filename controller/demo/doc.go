// Package demo shows the whole path on one machine: a real Linux TCP sender, a wire (a veth pair), XDP, AF_XDP, the flow
// table, the vhost-user back-end, guest memory, a vhost-user front-end, and the TCP stack of a guest namespace.
package demo
