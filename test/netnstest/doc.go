// Package netnstest gives privileged tests what they need on the network: namespaces with a veth pair between them,
// frames put on the wire and read off it, accelerated VLAN tags, bulk TCP with hashes. Everything it makes goes away
// with the test, also when the test fails; what a killed run left is swept by the next one.
//
// A test says what it needs first:
//
//	netnstest.Need(t, netnstest.AFXDP)
//	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
//	n.A.Inject(t, frame)
//	got := n.B.Capture(t).Next(time.Second)
//
// Need skips the test and says what is missing, or fails it when RSCCTL_NO_SKIP=1.
package netnstest
