#!/bin/sh
# Gets what the tests need and this machine lacks. Quick when everything is there; needs root only when it is not.
#
#   test/vm/setup.sh [vm] [net] [race] [prom] [generate] [dpdk] [package] [systemd] [newer]      (no argument: vm)
#
#   vm        QEMU, and a guest kernel with its modules, unpacked into test/vm/.cache and not installed
#   net       ethtool and iproute2 (ip, bridge), with which the privileged tests look at what was done from outside
#   prom      Prometheus and promtool, unpacked into test/vm/.cache and not installed: a package would start a service
#   race      a C compiler for `go test -race`
#   generate  clang and llvm-strip of the version `make generate` names
#   dpdk      dpdk-testpmd and its virtio-user driver, for the interoperation test
#   package   what reads the package's parts: systemd-analyze, man, zsh, fish
#   systemd   a disk image of this distribution with systemd, made of its packages into test/vm/.cache
#   newer     QEMU 10 and a guest kernel 6.12, from Debian trixie by the mirror that apt has here, unpacked into
#             test/vm/.cache/newer and not installed; where that cannot be had, a word, and the tests that want it skip
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

# kernel_package META [OPTION OF APT]... prints the package behind the metapackage: it carries the ABI number, so it changes with updates.
kernel_package() {
	apt-cache depends "$@" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
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
	take_kept kernel vmlinuz && return 0
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
	take_kernel "$work/root" "$work/kernel" || die "$package holds no kernel image or no modules"
	rm -rf "$cache/kernel"
	mv "$work/kernel" "$cache/kernel"
	rm -rf "$work"
	trap - EXIT INT TERM
	say "guest kernel $(cat "$cache/kernel/release") is in $cache/kernel"
	keep kernel
}

# take_kernel ROOT TO moves the kernel of an unpacked package to the folder TO.
take_kernel() {
	image=$(find "$1/boot" -name 'vmlinuz-*' | head -n 1)
	modules=$(find "$1" -type d -path '*/lib/modules/*' -prune | head -n 1)
	[ -n "$image" ] && [ -n "$modules" ] || return 1
	mkdir "$2"
	cp "$image" "$2/vmlinuz"
	mv "$modules" "$2/modules"
	basename "$modules" >"$2/release"
}

# keep NAME leaves a copy of .cache/NAME for the next clone, which then downloads nothing.
keep() {
	mkdir -p "$kept" 2>/dev/null || return 0
	work2=$(mktemp -d "$kept/copy.XXXXXX") || return 0
	cp -a "$cache/$1" "$work2/$1" && rm -rf "${kept:?}/$1" && mv "$work2/$1" "$kept/$1"
	rm -rf "$work2"
}

# take_kept NAME FILE makes .cache/NAME of the copy that an earlier clone kept, if that has FILE.
take_kept() {
	[ -r "$kept/$1/$2" ] || return 1
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/copy.XXXXXX")
	cp -a "$kept/$1" "$work/$1"
	mv "$work/$1" "$cache/$1"
	rmdir "$work"
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

# debian_mirror prints where apt has Debian's packages from, which has its other releases as well.
debian_mirror() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' | sed -n 's/^Debian Debian //p' | head -n 1
}

# need_newer leaves .cache/newer: bin/qemu-system-x86_64, which runs with the libraries beside it, and kernel/ as in .cache/kernel. apt
# works with lists, sources and an empty list of what is installed of its own here, so it downloads the libraries too and changes nothing.
need_newer() {
	[ -r "$cache/newer/kernel/release" ] && return 0
	take_kept newer kernel/release && return 0
	mirror=
	if is_debian; then
		mirror=$(debian_mirror)
		if [ -z "$mirror" ] && [ "$(id -u)" = 0 ]; then
			update
			mirror=$(debian_mirror)
		fi
	fi
	without="what needs QEMU 10 is skipped, unless the QEMU in the path and RSCCTL_VM_KERNEL are new enough"
	if [ -z "$mirror" ]; then
		say "newer: apt has no mirror of Debian here: $without"
		return 0
	fi
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/unpack.XXXXXX")
	trap 'rm -rf "$work"' EXIT INT TERM
	chmod 755 "$work"
	mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root" "$work/newer/bin"
	: >"$work/status"
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	if [ -r $keys ]; then keys="[signed-by=$keys] "; else keys=; fi
	echo "deb ${keys}$mirror trixie main" >"$work/sources.list"
	set -- -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" \
		-o Dir::State::status="$work/status" -o Dir::State::extended_states="$work/states" -o Dir::Cache="$work/cache" \
		-o Debug::NoLocking=1 -o APT::Sandbox::User=root
	say "downloading QEMU with its libraries and a kernel of Debian trixie"
	apt "$@" update >&2 && apt "$@" -y --no-install-recommends --download-only install qemu-system-x86 >&2 &&
		package=$(kernel_package linux-image-cloud-amd64 "$@") && (cd "$work" && apt "$@" download "$package") >&2 || {
		say "newer: Debian trixie cannot be had from apt's mirror: $without"
		rm -rf "$work"
		trap - EXIT INT TERM
		return 0
	}
	for deb in "$work"/*.deb "$work"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
	take_kernel "$work/root" "$work/newer/kernel" || die "$package holds no kernel image or no modules"
	for part in bin/qemu-system-x86_64 lib/x86_64-linux-gnu share/qemu share/seabios; do
		mkdir -p "$work/newer/usr/$(dirname $part)"
		mv "$work/root/usr/$part" "$work/newer/usr/$part"
	done
	cat >"$work/newer/bin/qemu-system-x86_64" <<'END'
#!/bin/sh
usr=$(CDPATH='' cd -- "$(dirname -- "$0")/../usr" && pwd)
lib=$usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$lib/qemu exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios" "$@"
END
	chmod 755 "$work/newer/bin/qemu-system-x86_64"
	"$work/newer/bin/qemu-system-x86_64" --version >&2 || die "newer: this QEMU does not run here"
	rm -rf "$cache/newer"
	mv "$work/newer" "$cache/newer"
	rm -rf "$work"
	trap - EXIT INT TERM
	keep newer
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
	newer) need_newer ;;
	*) die "what is \"$what\"? vm, net, race, prom, generate, dpdk, package, systemd or newer" ;;
	esac
done
