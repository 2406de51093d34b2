#!/usr/bin/env bash
# Runs test stages one after the other, each to its end, and says last what failed and what was skipped, and why.
#
#   test/run.sh STAGE...
#
#   unit     all tests, without those that boot a VM or take minutes
#   race     the packages with goroutines or shared memory under the race detector, short
#   vm       test/vm: real guests in QEMU
#   hostvm   the privileged tests that see what a kernel decides, once more in a throw-away VM, on its kernel
#   allvm    all privileged tests there: most of an hour
#   nested   test/vm in such a VM: a real guest on a tap with /dev/vhost-net
#   systemd  the package and its service in a throw-away VM with systemd
#   fuzz     every fuzz target for a few seconds
#   long     the tests that take minutes each
#
# A stage is one line and what failed in it. Its events are in .cache/test/STAGE.json, as 'go test -json' writes them; the whole
# output of one test:  jq -r 'select(.Test=="TestX").Output//empty' .cache/test/unit.json
#
# Packages run one at a time (-p 1): many tests make network namespaces and traffic, on machines with few cores.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.cache/test
rm -rf "$out"
mkdir -p "$out"

reports=()
failed=()

# stage NAME ARG...: the arguments are gotestsum's.
stage() {
	local name=$1
	shift
	reports+=("$out/$name.json")
	echo "== $name"
	go tool -modfile=tools/go.mod gotestsum --format none --hide-summary skipped --jsonfile "$out/$name.json" "$@" || failed+=("$name")
}

# fuzz_events prints the events of a short run of every fuzz target.
fuzz_events() {
	local code=0 list pkg target
	list=$(go test -list '^Fuzz' ./...) || return 1
	while read -r pkg target; do
		go test -json -run '^$' -fuzz "^$target\$" -fuzztime 5s -fuzzminimizetime 20x -timeout 3m "$pkg" || code=1
	done < <(awk '/^Fuzz/ { names[++n] = $1 } /^ok/ { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }' <<<"$list")
	return "$code"
}
export -f fuzz_events

[ $# -gt 0 ] || { echo "usage: test/run.sh STAGE... (see its head)" >&2; exit 2; }
# Tests may leave what this kernel lacks to the VM when that is going to run them.
[[ " $* " != *" hostvm "* && " $* " != *" allvm "* ]] || export RSCCTL_HOSTVM=1

for name in "$@"; do
	case $name in
	unit) stage unit -- -p 1 -timeout 15m ./... ;;
	race) stage race -- -race -short -p 1 -timeout 10m ./flowtable/... ./vhost/... ./controller/... ./bpf/... ./cmd/... ;;
	vm) RSCCTL_VM=1 stage vm -- -timeout 18m -count 1 ./test/vm/... ;;
	hostvm) stage hostvm --raw-command -- go run ./test/hostvm -json ;;
	allvm) stage allvm --raw-command -- go run ./test/hostvm -json -all ;;
	nested) stage nested --raw-command -- go run ./test/hostvm -json ./test/vm ;;
	systemd) stage systemd --raw-command -- go run ./test/hostvm -json systemd ;;
	fuzz) stage fuzz --raw-command -- bash -c fuzz_events ;;
	long) RSCCTL_VM=1 RSCCTL_LONG=1 stage long -- -p 1 -timeout 75m -count 1 ./test/vm/... ./vhost/... ./controller/... ./test/e2e ;;
	*) echo "test/run.sh: stage \"$name\": no such stage (see its head)" >&2; exit 2 ;;
	esac
done

go run ./test/skips -failed "${failed[*]}" "${reports[@]}"
