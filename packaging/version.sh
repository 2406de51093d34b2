#!/bin/sh
# Prints the version of a package of this tree, such that a later one is newer for dpkg: 1.2.3 at the tag v1.2.3, 1.2.3+4.gabc1234 four
# commits behind it, 0.0.0+1234.gabc1234 where there is no tag, and with +dirty where files are not committed. RSCCTL_VERSION replaces it.
set -eu
cd "$(dirname "$0")/.."
if [ -n "${RSCCTL_VERSION:-}" ]; then
	echo "$RSCCTL_VERSION"
	exit 0
fi
described=$(git describe --tags --match 'v[0-9]*' --long --abbrev=7 --dirty=+dirty 2>/dev/null) ||
	described=v0.0.0-$(git rev-list --count HEAD)-g$(git describe --always --exclude '*' --abbrev=7 --dirty=+dirty)
# A tag of a version yet to come, v1.2.3-rc1, sorts before 1.2.3: dpkg's tilde.
echo "$described" | sed -E 's/^v//; s/-0-g[0-9a-f]+(\+dirty)?$/\1/; s/-([0-9]+)-g/+\1.g/; s/-/~/g'
