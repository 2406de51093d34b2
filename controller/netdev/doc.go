// Package netdev reads what is true of one network interface and makes the few changes that attaching it needs: offloads
// switched, a MAC added to the receive filter, broadcast and multicast read beside XDP. It decides nothing and says
// nothing to people; the controller does both from the facts and changes returned here.
//
// # Namespaces
//
// A [Handle] keeps the network namespace its sockets were opened in, so it may be used from any goroutine. The package
// functions open one for a single call, in the namespace of the calling thread. Nothing here reads /sys/class/net: it
// shows the namespace that /sys was mounted in, which need not be ours.
package netdev
