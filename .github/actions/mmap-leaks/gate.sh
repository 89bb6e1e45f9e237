#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command under ebpftrace mmap-leaks; only the tracer is root.  For any CI system: all it needs is in variables.
#
#   COMMAND     for sh -c
#   REPORTS     directory for report.json, junit.xml, leaks.sarif and profile.pb.gz; mmap-leaks without it
#   OPTIONS     more options for mmap-leaks, words apart from each other by spaces
#   EBPFTRACE   the program; that of this checkout without it
#
# Exits as mmap-leaks --fail-on-leak does: 3 on a leak, 4 where something could not be judged, else as COMMAND.
set -eu

: "${COMMAND:?the command to run}"
reports=${REPORTS:-mmap-leaks}
here=$(cd "$(dirname "$0")" && pwd)
ebpftrace=${EBPFTRACE:-$here/../../../.venv/bin/ebpftrace}

mkdir -p "$reports"
set -- "$ebpftrace" mmap-leaks --fail-on-leak -q --json -o "$reports/report.json" \
    --junit "$reports/junit.xml" --sarif "$reports/leaks.sarif" --pprof "$reports/profile.pb.gz" \
    --annotations "$reports/annotations" ${OPTIONS:-} --
if [ "$(id -u)" = 0 ]; then
    set -- "$@" sh -c "$COMMAND"
else
    # sudo would take PATH away, and run COMMAND as root.
    set -- sudo -E env "PATH=$PATH" "$@" \
        setpriv "--reuid=$(id -u)" "--regid=$(id -g)" --init-groups sh -c "$COMMAND"
fi
status=0
"$@" || status=$?
if [ -f "$reports/report.json" ]; then
    [ -z "${GITHUB_ACTIONS:-}" ] || cat "$reports/annotations"
    "$ebpftrace" report -q "$reports/report.json" >"$reports/report.txt"
    cat "$reports/report.txt"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
        printf '```\n%s\n```\n' "$(cat "$reports/report.txt")" >>"$GITHUB_STEP_SUMMARY"
    fi
fi
exit "$status"
