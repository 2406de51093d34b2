#!/usr/bin/env bash
# Writes dist/rscctl_VERSION_ARCH.deb for amd64 and arm64. It needs Go and git alone; nothing of it runs as root.
#
#   packaging/build.sh [ARCH...]        (no argument: amd64 arm64)
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=$(packaging/version.sh)
DIST=${RSCCTL_DIST:-dist}
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
export VERSION STAGE
# The same tree gives the same package: times are the commit's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
[ $# -gt 0 ] || set -- amd64 arm64

build() {
	CGO_ENABLED=0 GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.release=$VERSION" -o "$2" ./cmd/rscctl
}

build "$(go env GOHOSTARCH)" "$STAGE/rscctl"
for shell in bash zsh fish; do "$STAGE/rscctl" completion $shell >"$STAGE/completion.$shell"; done
"$STAGE/rscctl" man | gzip -9n >"$STAGE/rscctl.1.gz"
gzip -9n >"$STAGE/changelog.gz" <<EOF
rscctl ($VERSION) unstable; urgency=medium

  * Built from commit $(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown).

 -- The rscctl authors <rscctl@users.noreply.github.com>  $(LC_ALL=C TZ=UTC date -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')
EOF
mkdir -p "$DIST"
for ARCH in "$@"; do
	export ARCH
	build "$ARCH" "$STAGE/rscctl-$ARCH"
	go tool -modfile=tools/go.mod nfpm package --config packaging/nfpm.yaml --packager deb --target "$DIST/" >&2
	echo "$DIST/rscctl_${VERSION}_$ARCH.deb"
done
