#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian or Ubuntu machine ready for `make demo` and `make test` in a checkout.  Run as root;
# running it again does no harm.
#
#   provision.sh CHECKOUT
set -eu

checkout=${1:?"the checkout"}
export DEBIAN_FRONTEND=noninteractive

[ "$(id -u)" = 0 ] || {
    echo "provision: run it as root" >&2
    exit 1
}

# make is all that the checkout cannot install by itself; git is for working in it.
apt-get update -q
apt-get install -y -q --no-install-recommends ca-certificates git make

# The kernel's own place for it; most systems have mounted it already.
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing

cd "$checkout"
make .venv/.demo .venv/.test
.venv/bin/ebpftrace doctor
