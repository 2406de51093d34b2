// Package e2e runs the real binary in network namespaces: `rscctl run` with its command line on one side of a veth pair, a
// real Linux sender on the other, and guests that are vhost-user front-ends with a tap into a namespace of their own. It
// holds no code but tests.
package e2e
