# rscctl: build, demonstrate, test. Root is needed for demo and for the privileged part of the tests.
CLANG      := clang-19
LLVM_STRIP := llvm-strip-19
BIN        := bin/rscctl
# Development tools have a module of their own: what a user builds does not depend on them.
TOOL       := go tool -modfile=tools/go.mod
EBPF       := github.com/cilium/ebpf

.PHONY: all build package demo report bench bench-all test test-all generate check fuzz clean

all: build

build:
	CGO_ENABLED=0 go build -o $(BIN) ./cmd/rscctl

# Debian packages for amd64 and arm64, in dist/.
package:
	packaging/build.sh

# The whole path on this machine in under a minute: needs root, Linux and Go, nothing else.
demo: build
	$(BIN) demo

# What this machine is and how fast, in a file that you read and may send: rscctl-report.md. As root it has a short demo in it.
report: build
	$(BIN) report

# What README and docs/performance.md quote, measured here: into bench/, and from there into the two. At most ten minutes; root. Without root the
# benchmarks of the packages are run and printed, and it ends with an error.
bench:
	go run ./test/bench

# More rows, into bench/ as well: every flow count over IPv6 and in both directions, all benchmarks. About half an hour.
bench-all:
	go run ./test/bench -all

# Unit, race, privileged and VM tests. What is missing is installed (Debian, Ubuntu) or named. The privileged tests run on
# this kernel and, in a throw-away VM, on a second one.
test: build
	bash test/vm/setup.sh net race prom package vm systemd
	test/run.sh unit race vm hostvm systemd

# The long ones as well: fuzzing, and what takes minutes in a VM.
test-all: build
	bash test/vm/setup.sh net race prom package vm systemd dpdk newer
	test/run.sh unit race vm allvm systemd fuzz long nested

# Every fuzz target for a few seconds.
fuzz:
	test/run.sh fuzz

# Remakes the committed BPF objects, bit for bit with this clang version.
generate:
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(LLVM_STRIP) go generate .

check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt: these files need it:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go mod tidy -diff
	go -C tools mod tidy -diff
	@test "$$(go list -m $(EBPF))" = "$$(go list -modfile=tools/go.mod -m $(EBPF))" || { echo "tools/go.mod: bpf2go writes for another version of $(EBPF) than go.mod has: make them equal"; exit 1; }
	$(TOOL) staticcheck ./...
	.ci/deadcode

clean:
	rm -rf bin dist .cache test/vm/.cache
