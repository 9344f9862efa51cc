#!/usr/bin/env bash
# Run the commands of "One machine, without containers" in deploy/README.md, and check what they give: Prometheus has
# the series and rules of the dashboard Fleet, and Grafana's folders have the dashboards.
#
#     sudo tests/fresh_machine.sh 12 'sudo tests/ten_commands.sh'
#
# It changes the system, so it runs only in a chroot. systemd does not run there: the script starts the exporter and
# Prometheus as their units do. Grafana is not a package of Debian: its part is that the files are in place.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "FAILED: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] && ischroot || fail "needs root and a chroot, see above"

# What the README assumes: lists of packages, systemd, and Grafana's package.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends systemd procps >/dev/null
mkdir -p /etc/grafana/provisioning

mapfile -t commands < <(awk '/^## /{here = $0 == "## One machine, without containers"} here' deploy/README.md |
	awk '/^```/{block = /text/; next} block')
[ "${#commands[@]}" = 10 ] || fail "${#commands[@]} commands"
for command in "${commands[@]}"; do
	echo "# $command"
	# No service can start now.
	bash -c "${command/enable --now/enable}" >/tmp/output 2>&1 || { tail -n 20 /tmp/output; fail "$command"; }
done

trap 'kill $(jobs -p) 2>/dev/null' EXIT
ARGS=
# shellcheck disable=SC1091,SC2086  # files of the packages; ARGS has several words, as in the units
{
	systemctl is-enabled --quiet joulewatch-exporter || fail "the exporter does not start at boot"
	. /etc/default/joulewatch-exporter
	joulewatch-exporter $ARGS 2>/tmp/exporter.log &
	. /etc/default/prometheus
	setpriv --reuid prometheus --regid prometheus --init-groups prometheus $ARGS 2>/tmp/prometheus.log &
}
python3 - <<'END' || { tail -n 5 /tmp/exporter.log /tmp/prometheus.log; fail "Prometheus has no power of this machine"; }
import json, pathlib, time, urllib.parse, urllib.request

def ask(path, **parameters):
    url = f"http://localhost:9090/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]

deadline = time.monotonic() + 120
while True:
    try:
        result = ask("query", query="cluster:joulewatch_host_energy_joules:rate5m > 0")["result"]
        if result:
            break
    except OSError:
        pass
    if time.monotonic() > deadline:
        raise SystemExit("no value within 120 s")
    time.sleep(1)
rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
assert rules and all(rule["health"] in ("ok", "unknown") for rule in rules), rules
provider = pathlib.Path("/etc/grafana/provisioning/dashboards/joulewatch.yaml").read_text()
boards = sorted(pathlib.Path("/var/lib/grafana/dashboards/joulewatch").glob("*.json"))
assert f"path: {boards[0].parent}\n" in provider and len(boards) == 5, boards
assert "PROMETHEUS_URL=http://localhost:9090" in pathlib.Path("/etc/default/grafana-server").read_text()
print(f"Fleet: {float(result[0]['value'][1]):.2g} W in the last 5 minutes; {len(rules)} rules; {len(boards)} dashboards")
END
echo "the ten commands: passed"
