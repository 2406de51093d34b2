// Package vm boots a real Linux guest in QEMU and has it talk, through the product, to a sender in a network namespace.
//
//   - [BuildInitrd] makes the guest's user space: the static program of test/vm/guest and the kernel modules it loads.
//   - [Start] runs QEMU without KVM (TCG), so it works on any x86-64 Linux machine; [VM.Do] gives the guest orders
//     (package control) over a serial port, because the network is what is being tested.
//
// The tests put the product in between: a namespace that sends, a veth pair, and a namespace where the real controller
// serves the other end for a VM.
//
// The tests are privileged and take minutes: without RSCCTL_VM=1 they skip, with RSCCTL_LONG=1 the long ones run too,
// and with RSCCTL_NO_SKIP=1 a skip is a failure. setup.sh gets QEMU and the guest's kernel.
//
// Everything that could hang has a context; every process dies with the test that started it; namespaces of a killed run
// are swept by the next.
package vm
