#!/usr/bin/env bash
# Install, upgrade, remove and purge the packages of the exporter on new Debian systems, which debootstrap creates in a
# temporary folder.
#
#     make packages && sudo tests/packages_in_chroot.sh dist        # Debian 12 and 13
#     sudo tests/packages_in_chroot.sh dist 13                      # one release
#
# The packages are installed without a network. The RPM is installed by Debian's rpm, which does not know Debian's
# python3, so its dependencies are not checked. systemd does not run in a chroot. Needs root, debootstrap and the
# machine's package mirror.
set -euo pipefail

declare -A suites=([12]=bookworm [13]=trixie)
name=joulewatch-exporter

fail() { echo "FAILED: $*" >&2; exit 1; }

check_installed() {
	[ -n "$(find "$root/usr/lib/joulewatch/joulewatch_exporter" -name '*.pyc' -print -quit)" ] || fail "no bytecode"
	[ -z "$(find "$root/usr/lib/joulewatch" -name '*.so' -print -quit)" ] || fail "compiled modules"
	inside $name --version
	inside rm -rf /tmp/node
	inside $name emulate epyc-7763-node /tmp/node --duration 0.2 --log.level warning
	inside $name --config.file=/etc/joulewatch/exporter.yaml --path.sysfs=/tmp/node/sys --path.procfs=/tmp/node/proc \
		--log.level warning --once | grep -q '^joulewatch_device_energy_joules_total{.*component="cpu"' || fail "no energy"
	inside python3 -I -c 'import sys; sys.path.insert(0, "/usr/lib/joulewatch"); import pynvml, requests, yaml'
	inside systemd-analyze verify --man=no $name.service || fail "the unit"
	inside test -s /usr/share/man/man1/$name.1.gz
}

check_removed() {
	[ ! -e "$root/usr/lib/joulewatch" ] || fail "left: $(find "$root/usr/lib/joulewatch" | head -n 3)"
	[ ! -e "$root/usr/bin/$name" ] || fail "left: /usr/bin/$name"
}

inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"; }

# Runs in its own mount, process and network namespaces.
check() {
	root=$1
	# rpm 4.20 changes the propagation of /, which must be a mount point.
	mount --bind "$root" "$root"
	mount -t proc proc "$root/proc"
	echo "== $(inside python3 --version): dpkg: install"
	inside dpkg --install /packages/first.deb >/dev/null
	check_installed
	echo "== dpkg: upgrade; an edited configuration stays"
	echo "# edited" >>"$root/etc/joulewatch/exporter.yaml"
	inside dpkg --install /packages/second.deb >/dev/null
	check_installed
	grep -q '^# edited' "$root/etc/joulewatch/exporter.yaml" || fail "the configuration was replaced"
	# shellcheck disable=SC2016  # dpkg-query expands the name
	[ "$(inside dpkg-query -W -f '${Version}' $name)" = 99.0-1 ] || fail "not upgraded"
	echo "== dpkg: remove, purge"
	inside dpkg --remove $name >/dev/null
	check_removed
	[ -e "$root/etc/joulewatch/exporter.yaml" ] || fail "removal without purge deleted the configuration"
	inside dpkg --purge $name >/dev/null
	[ ! -e "$root/etc/joulewatch" ] && [ ! -e "$root/etc/default/$name" ] || fail "left in /etc"
	echo "== rpm: install, install again, remove"
	inside rpm --install --nodeps /packages/package.rpm
	check_installed
	inside rpm --upgrade --nodeps --replacepkgs /packages/package.rpm
	check_installed
	inside rpm --erase $name
	check_removed
}

if [ "${1:-}" = --inside ]; then
	check "$2"
	exit
fi

[ "$(id -u)" = 0 ] || { echo "packages_in_chroot.sh needs root: sudo $0" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 2; }
dist=${1:?usage: packages_in_chroot.sh FOLDER [RELEASE...]}
shift
[ "$#" -gt 0 ] || set -- 12 13
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/joulewatch-packages.XXXXXX")
trap 'rm -rf --one-file-system "$folder"' EXIT
chmod 755 "$folder"
# Use the Debian mirror of this machine; without one, debootstrap uses its default.
# shellcheck disable=SC2016  # apt-get expands the names
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
	awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
for release in "$@"; do
	root=$folder/debian-$release
	echo "== Debian $release: debootstrap"
	debootstrap --variant=minbase --include=python3,rpm,systemd "${suites[$release]}" "$root" ${mirror:+"$mirror"} \
		>"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
	mkdir "$root/packages"
	cp "$dist"/${name}_*_all.deb "$root/packages/first.deb"
	cp "$dist"/$name-*.noarch.rpm "$root/packages/package.rpm"
	# The same package with a higher version.
	dpkg-deb --raw-extract "$root/packages/first.deb" "$folder/second"
	sed -i 's/^Version: .*/Version: 99.0-1/' "$folder/second/DEBIAN/control"
	dpkg-deb --build --root-owner-group "$folder/second" "$root/packages/second.deb" >/dev/null
	rm -rf "$folder/second"
	unshare --mount --propagation private --pid --fork --kill-child --net bash "$0" --inside "$root"
	rm -rf --one-file-system "$root"
	echo "Debian $release: passed"
done
