#!/bin/sh
set -e
# $1 is remove or upgrade for dpkg, and the number of versions that stay for rpm.
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now joulewatch-exporter.service
	fi
	;;
esac
case "$1" in
remove | upgrade | 0)
	find /usr/lib/joulewatch -name __pycache__ -prune -exec rm -rf {} +
	;;
esac
