#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what the programs of the matrix are made with (make test-stacks), as root.  What a distribution lacks
# is left out, and so is its test.
set -eu
if command -v apt-get >/dev/null 2>&1; then
    for package in golang-go ruby libboost-context-dev default-jdk-headless nodejs gdb gfortran lua5.4 php-cli \
        ocaml-nox; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 "$package" >/dev/null || echo "install.sh: without $package" >&2
    done
else
    echo "install.sh: no apt-get here: install Go, Ruby, Boost, a JDK, node, gdb," \
        "gfortran, Lua 5.4, PHP and OCaml yourself" >&2
fi
