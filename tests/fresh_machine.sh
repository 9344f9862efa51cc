#!/usr/bin/env bash
# Run the README's commands as a new user on new Debian systems, which debootstrap creates in a temporary folder.
#
#     sudo tests/fresh_machine.sh                              # Debian 12 and 13: make profile PRESET=quick, make test
#     sudo tests/fresh_machine.sh 13 'make check' .ci/run      # one release, other commands
#
# The commands run in a clone of the committed tree, as an ordinary user who may use sudo. Needs root, debootstrap,
# the machine's package mirror and Python package index, and 5 GB in TMPDIR (default: /var/tmp).
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
declare -A suites=([12]=bookworm [13]=trixie)

# Variables for access to the package registries: proxies, certificates, indexes.
network_variables=(
	http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY
	SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
	PIP_CERT PIP_PROXY PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT npm_config_registry
)

# Runs in its own mount and process namespaces, so that all mounts and processes end with the script.
inside() {
	local root=$1 release=$2 name command status failed=0
	local -a environment=(HOME=/home/newcomer USER=newcomer LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin)
	shift 2

	echo "== Debian $release: debootstrap"
	# Use the Debian mirror of this machine; without one, debootstrap uses its default.
	local mirror
	# shellcheck disable=SC2016  # apt-get expands the names
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
	debootstrap --variant=minbase --include=ca-certificates,git,make,python3,python3-venv,sudo \
		"${suites[$release]}" "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 || { tail -n 20 "$root.log"; return 1; }
	mount -t proc proc "$root/proc"
	mount -t sysfs -o ro sysfs "$root/sys"
	mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
	mount -t tmpfs tmpfs "$root/dev/shm"

	printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(hostname)" >"$root/etc/hosts"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	for name in /etc/pip.conf /etc/npmrc; do [ ! -e "$name" ] || cp "$name" "$root$name"; done
	if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
		cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
		chroot "$root" update-ca-certificates >/dev/null 2>&1
	fi
	for name in "${network_variables[@]}"; do
		[ -z "${!name:-}" ] || environment+=("$name=${!name}")
	done

	chroot "$root" useradd --create-home --shell /bin/bash newcomer
	printf 'Defaults !env_reset\nnewcomer ALL=(ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/newcomer"
	git -c safe.directory='*' clone --quiet --no-hardlinks "$top" "$root/home/newcomer/joulewatch"
	chroot "$root" chown -R newcomer: /home/newcomer

	for command in "$@"; do
		echo "== Debian $release: $command"
		SECONDS=0 status=0
		chroot --userspec=newcomer:newcomer "$root" env -i "${environment[@]}" \
			bash -c "cd ~/joulewatch && $command" </dev/null || status=$?
		[ "$status" = 0 ] || failed=1
		echo "Debian $release, $(chroot "$root" python3 --version): $command: exit status $status after $SECONDS s" |
			tee -a "$summary"
	done
	return "$failed"
}

if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
	exit
fi

[ "$(id -u)" = 0 ] || { echo "fresh_machine.sh needs root: sudo $0" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 2; }
releases=()
while [ -n "${suites[${1:-none}]:-}" ]; do releases+=("$1"); shift; done
[ "${#releases[@]}" -gt 0 ] || releases=(12 13)
[ "$#" -gt 0 ] || set -- 'make profile PRESET=quick' 'make test'

folder=$(mktemp -d "${TMPDIR:-/var/tmp}/joulewatch-fresh.XXXXXX")
child=
# shellcheck disable=SC2329  # called by the trap
clean_up() {
	[ -z "$child" ] || { kill -KILL "$child" && wait "$child"; } 2>/dev/null || true
	rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$folder"
export summary=$folder/summary
failed=0
for release in "${releases[@]}"; do
	unshare --mount --propagation private --pid --fork --kill-child \
		bash "$0" --inside "$folder/debian-$release" "$release" "$@" &
	child=$!
	wait "$child" || failed=1
	child=
	rm -rf --one-file-system "$folder/debian-$release"
done
echo "== Summary"
cat "$summary"
exit "$failed"
