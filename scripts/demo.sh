#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts the leaking server, traces it for some seconds and shows the report.  Run by make demo.
set -eu

seconds=${DEMO_SECONDS:-12}
period=2

if [ "$(id -u)" != 0 ]; then
    echo "demo: tracing needs root. Run: sudo make demo" >&2
    exit 1
fi

started=$(mktemp)
build/app_server $period >"$started" &
server=$!
trap 'kill $server 2>/dev/null && wait $server 2>/dev/null || :; rm -f "$started"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
until grep -q ready "$started"; do
    kill -0 $server 2>/dev/null || exit 1
    sleep 0.1
done

cat <<TEXT
app_server (pid $server) starts a short job every $period seconds, each in a thread that nobody joins.
$ ebpftrace mmap-leaks -p $server -d $seconds

TEXT
.venv/bin/ebpftrace mmap-leaks -p $server -d "$seconds"
