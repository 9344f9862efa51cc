#!/bin/sh
set -e
# The service may not write, so that without these files each start would compile all modules again.
/usr/bin/python3 -m compileall -q /usr/lib/joulewatch
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# After an upgrade; the first start is up to the administrator, because power readings leak what the CPU computes.
	systemctl try-restart joulewatch-exporter.service
fi
