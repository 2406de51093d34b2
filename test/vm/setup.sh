#!/bin/sh
# Gets what the tests need and this machine lacks. Quick when everything is there; needs root only when it is not.
#
#   test/vm/setup.sh [vm] [net] [race] [prom] [generate] [dpdk] [package] [systemd]      (no argument: vm)
#
#   vm        QEMU, and a guest kernel with its modules, unpacked into test/vm/.cache and not installed
#   net       ethtool and iproute2 (ip, bridge), with which the privileged tests look at what was done from outside
#   prom      Prometheus and promtool, unpacked into test/vm/.cache and not installed: a package would start a service
#   race      a C compiler for `go test -race`
#   generate  clang and llvm-strip of the version `make generate` names
#   dpdk      dpdk-testpmd and its virtio-user driver, for the interoperation test
#   package   what reads the package's parts: systemd-analyze, man, zsh, fish
#   systemd   a disk image of this distribution with systemd, made of its packages into test/vm/.cache
#
# RSCCTL_VM_KERNEL (a bzImage) and RSCCTL_VM_MODULES (its lib/modules/VERSION folder) replace the
# downloaded kernel. A copy is kept in $XDG_CACHE_HOME/rscctl (~/.cache/rscctl) for other clones. On Debian and Ubuntu apt gets the rest; elsewhere this says what to install.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$here/.cache
kept=${XDG_CACHE_HOME:-$HOME/.cache}/rscctl # outlives a clone
CLANG=${RSCCTL_CLANG_VERSION:-19}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_debian() { have apt-get && have dpkg-deb; }

# apt-get, waiting for another apt instead of failing beside it, and never asking a question.
apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -qq "$@"
}

# Package lists are fetched once a run, and only when apt knows no candidate or a download failed: lists older than the
# archive name files that are gone.
updated=
update() {
	[ -z "$updated" ] || return 0
	[ "$(id -u)" = 0 ] || die "apt-get update needs root: run this as root once"
	updated=yes
	say "apt-get update"
	apt update >&2
}

known() { apt-cache show "$1" >/dev/null 2>&1; }

install_packages() {
	is_debian || die "cannot install here (no apt); please install: $1"
	[ "$(id -u)" = 0 ] || die "installing needs root; run this as root, or install: $2"
	for p in $2; do known "$p" || update; done
	say "installing $2"
	# shellcheck disable=SC2086
	apt install -y --no-install-recommends $2 >&2 && return 0
	update
	# shellcheck disable=SC2086
	apt install -y --no-install-recommends $2 >&2
}

need_qemu() {
	case $(uname -m) in
	x86_64) ;;
	*) die "the VM tests boot an x86-64 guest and were written for an x86-64 host" ;;
	esac
	have qemu-system-x86_64 || install_packages "QEMU with the x86_64 system emulator (7.2 or newer)" "qemu-system-x86"
}

# kernel_package prints the package behind the metapackage: it carries the ABI number, so it changes with updates.
kernel_package() {
	apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# need_kernel leaves .cache/kernel/vmlinuz and .cache/kernel/modules. The folder appears by one rename, so a run that was
# interrupted leaves nothing half-made under that name.
need_kernel() {
	if [ -n "${RSCCTL_VM_KERNEL:-}" ]; then
		[ -r "$RSCCTL_VM_KERNEL" ] || die "RSCCTL_VM_KERNEL=$RSCCTL_VM_KERNEL cannot be read"
		[ -n "${RSCCTL_VM_MODULES:-}" ] || die "RSCCTL_VM_KERNEL also needs RSCCTL_VM_MODULES, its module folder"
		[ -d "$RSCCTL_VM_MODULES" ] || die "RSCCTL_VM_MODULES=$RSCCTL_VM_MODULES is not a folder"
		return 0
	fi
	[ -r "$cache/kernel/vmlinuz" ] && [ -d "$cache/kernel/modules" ] && return 0
	if [ -r "$kept/kernel/vmlinuz" ] && [ -d "$kept/kernel/modules" ]; then
		mkdir -p "$cache"
		work=$(mktemp -d "$cache/copy.XXXXXX")
		cp -a "$kept/kernel" "$work/kernel"
		mv "$work/kernel" "$cache/kernel"
		rmdir "$work"
		return 0
	fi
	is_debian || die "no kernel for the guest: set RSCCTL_VM_KERNEL (a bzImage with the virtio PCI drivers)" \
		"and RSCCTL_VM_MODULES (its lib/modules/VERSION folder)"
	# Ubuntu has no cloud flavour under this name; its nearest is linux-image-virtual, whose modules are a package apart.
	meta=linux-image-cloud-amd64
	package=$(kernel_package $meta)
	if [ -z "$package" ]; then
		update
		package=$(kernel_package $meta)
	fi
	extra=
	if [ -z "$package" ]; then
		package=$(kernel_package linux-image-virtual)
		[ -n "$package" ] || die "no package behind $meta or linux-image-virtual: set RSCCTL_VM_KERNEL and RSCCTL_VM_MODULES"
		extra=linux-modules-${package#linux-image-}
	fi
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/unpack.XXXXXX")
	trap 'rm -rf "$work"' EXIT INT TERM
	# apt downloads as another user when it can; without this it complains about a folder of ours.
	chmod 755 "$work"
	say "downloading $package $extra"
	# shellcheck disable=SC2086
	(cd "$work" && apt -o APT::Sandbox::User=root download $package $extra) >&2 || {
		update
		package=$(kernel_package $meta)
		# shellcheck disable=SC2086
		(cd "$work" && apt -o APT::Sandbox::User=root download ${package:-linux-image-virtual} $extra) >&2
	}
	for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
	image=$(find "$work/root/boot" -name 'vmlinuz-*' | head -n 1)
	modules=$(find "$work/root" -type d -path '*/lib/modules/*' -prune | head -n 1)
	[ -n "$image" ] && [ -n "$modules" ] || die "$package holds no kernel image or no modules"
	mkdir "$work/kernel"
	cp "$image" "$work/kernel/vmlinuz"
	mv "$modules" "$work/kernel/modules"
	basename "$modules" >"$work/kernel/release"
	rm -rf "$cache/kernel"
	mv "$work/kernel" "$cache/kernel"
	say "guest kernel $(cat "$cache/kernel/release") is in $cache/kernel"
	keep_kernel
}

# keep_kernel leaves a copy for the next clone, which then downloads nothing.
keep_kernel() {
	mkdir -p "$kept" 2>/dev/null || return 0
	work2=$(mktemp -d "$kept/copy.XXXXXX") || return 0
	cp -a "$cache/kernel" "$work2/kernel" && rm -rf "$kept/kernel" && mv "$work2/kernel" "$kept/kernel"
	rm -rf "$work2"
}

need_net() {
	missing=
	have ethtool || missing="ethtool"
	{ have ip && have bridge; } || missing="$missing iproute2"
	[ -z "$missing" ] || install_packages "ethtool and iproute2" "$missing"
}

# need_prom leaves .cache/prometheus/prometheus and promtool, or finds both in PATH.
need_prom() {
	{ have prometheus && have promtool; } && return 0
	[ -x "$cache/prometheus/prometheus" ] && [ -x "$cache/prometheus/promtool" ] && return 0
	is_debian || die "cannot unpack here (no apt); please install: prometheus and promtool"
	known prometheus || update
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/unpack.XXXXXX")
	trap 'rm -rf "$work"' EXIT INT TERM
	chmod 755 "$work"
	say "downloading prometheus"
	(cd "$work" && apt -o APT::Sandbox::User=root download prometheus) >&2 || {
		update
		(cd "$work" && apt -o APT::Sandbox::User=root download prometheus) >&2
	}
	dpkg-deb -x "$work"/prometheus_*.deb "$work/root"
	rm -rf "$cache/prometheus"
	mv "$work/root/usr/bin" "$cache/prometheus"
	rm -rf "$work"
	trap - EXIT INT TERM
}

need_race() { have gcc || have cc || install_packages "a C compiler (gcc) and the C library's headers" "gcc libc6-dev"; }

need_generate() {
	missing=
	have "clang-$CLANG" || missing="clang-$CLANG"
	have "llvm-strip-$CLANG" || missing="$missing llvm-$CLANG"
	[ -z "$missing" ] || install_packages "clang and llvm-strip, version $CLANG" "$missing"
}

need_dpdk() {
	missing=
	have dpdk-testpmd || missing="dpdk-dev"
	# The driver is a shared object that testpmd loads; its name ends in DPDK's ABI number.
	ls /usr/lib/*/dpdk/pmds-*/librte_net_virtio.so* >/dev/null 2>&1 || {
		is_debian || die "cannot install here (no apt); please install: DPDK with testpmd and the net_virtio driver"
		known librte-net-virtio23 || update
		driver=$(apt-cache pkgnames librte-net-virtio | sort | tail -n 1)
		missing="$missing ${driver:-librte-net-virtio23}"
	}
	[ -z "$missing" ] || install_packages "DPDK with testpmd and the net_virtio driver" "$missing"
}

need_package() {
	missing=
	have systemd-analyze || missing="systemd"
	have man || missing="$missing man-db"
	have zsh || missing="$missing zsh"
	have fish || missing="$missing fish"
	[ -z "$missing" ] || install_packages "systemd-analyze, man, zsh and fish" "$missing"
}

# need_systemd leaves .cache/systemd.ext4: the distribution's smallest system with systemd, from the sources that apt has here. A copy
# outlives the clone; one of another release, or older than a month, is made anew.
need_systemd() {
	image=$cache/systemd.ext4
	[ -r "$image" ] && return 0
	release=$(. /etc/os-release && echo "$ID$VERSION_ID")
	old=$kept/systemd-$release.ext4
	if [ -n "$(find "$old" -mtime -30 2>/dev/null)" ]; then
		mkdir -p "$cache"
		cp --sparse=always "$old" "$image.new"
		mv "$image.new" "$image"
		return 0
	fi
	is_debian || die "no system for the VM (no apt): put an ext4 image of a system with systemd and dpkg at $image"
	[ "$(id -u)" = 0 ] || die "making a system needs root: run this as root once"
	missing=
	have mmdebstrap || missing="mmdebstrap"
	have mke2fs || missing="$missing e2fsprogs"
	[ -z "$missing" ] || install_packages "mmdebstrap and mke2fs" "$missing"
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/system.XXXXXX")
	trap 'rm -rf "$work"' EXIT INT TERM
	chmod 755 "$work"
	apt-config dump Acquire >"$work/apt.conf"
	set --
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		if [ -s "$f" ] && grep -qE '^(deb |Types:)' "$f"; then set -- "$@" "$f"; fi
	done
	say "making a system with systemd of $release"
	# shellcheck disable=SC2016
	mmdebstrap --quiet --mode=root --variant=minbase --include=systemd,systemd-sysv,iproute2,kmod --aptopt="$work/apt.conf" \
		--customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/locale/* "$1"/usr/share/man/*' \
		--customize-hook='rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/resolv.conf' \
		--customize-hook='echo rscctl-test >"$1"/etc/hostname' --customize-hook='chroot "$1" systemctl mask getty.target systemd-timesyncd.service' \
		'' "$work/root" "$@" >&2
	mke2fs -q -t ext4 -d "$work/root" "$image.new" 700M >&2
	rm -rf "$work"
	trap - EXIT INT TERM
	mv "$image.new" "$image"
	mkdir -p "$kept" 2>/dev/null && cp --sparse=always "$image" "$old.new" && mv "$old.new" "$old" || true
}

[ $# -gt 0 ] || set -- vm
for what in "$@"; do
	case $what in
	vm)
		need_qemu
		need_kernel
		;;
	net) need_net ;;
	race) need_race ;;
	prom) need_prom ;;
	generate) need_generate ;;
	dpdk) need_dpdk ;;
	package) need_package ;;
	systemd) need_systemd ;;
	*) die "what is \"$what\"? vm, net, race, prom, generate, dpdk, package or systemd" ;;
	esac
done
