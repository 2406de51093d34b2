// Package rscctl is the root of the module; it holds only the lines that remake the BPF objects.
//
// The committed files bpf/*_bpfel.go and bpf/*_bpfel.o are made by clang, so a build needs Go alone.
// `make generate` runs this with the clang version the Makefile names, which yields them bit for bit: the sources include
// no header of the machine, and paths of the machine stay out of the object.
package rscctl

//go:generate go tool -modfile=tools/go.mod bpf2go -target bpfel -output-dir bpf -output-stem rsc -go-package bpf Rsc bpf/rsc.bpf.c -- -mcpu=v3 -nostdinc -O2 -g -Wall -Wextra -Werror -Wshadow
//go:generate go tool -modfile=tools/go.mod bpf2go -target bpfel -output-dir bpf -output-stem tap -go-package bpf RscTap bpf/tap.bpf.c -- -mcpu=v3 -nostdinc -O2 -g -Wall -Wextra -Werror -Wshadow
//go:generate go tool -modfile=tools/go.mod bpf2go -target bpfel -output-dir bpf -output-stem observe -go-package bpf RscObserve bpf/observe.bpf.c -- -mcpu=v3 -nostdinc -O2 -g -Wall -Wextra -Werror -Wshadow
//go:generate go tool -modfile=tools/go.mod bpf2go -target bpfel -output-dir bpf -output-stem host -go-package bpf RscHost bpf/host.bpf.c -- -mcpu=v3 -nostdinc -O2 -g -Wall -Wextra -Werror -Wshadow
