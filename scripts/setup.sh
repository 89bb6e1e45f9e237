#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, and makes .venv with ebpftrace in it.  Run by make, from the top directory.
#
#   scripts/setup.sh use      bcc, and a venv that sees it
#   scripts/setup.sh demo     a C compiler too
#   scripts/setup.sh test     and what tests and linters need
#   scripts/setup.sh kernels  and what virtual machines need (vmtest/)
#   scripts/setup.sh arm64    and what those of another machine need
#   scripts/setup.sh bench    a C compiler, and the tools that are measured (benchmarks/)
#   scripts/setup.sh fuzz     bcc, and the engine of the fuzzer (fuzz/)
set -eu

purpose=${1:?"use, demo, test, kernels, arm64, bench or fuzz"}
python=${PYTHON:-/usr/bin/python3} # the distribution's: no other Python sees its bcc
venv=.venv

say() { echo "setup: $*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

package_manager() {
    for candidate in apt-get dnf; do
        if has "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "neither apt-get nor dnf here: install bcc for Python 3 and python3-venv yourself, then run it again"
}

# Prints the package of this distribution that holds a thing; the names of things are ours.
package_of() {
    case "$manager:$1" in
    apt-get:bcc) echo python3-bpfcc ;;
    dnf:bcc) echo python3-bcc ;;
    apt-get:venv) echo python3-venv ;;
    dnf:venv) echo python3-libs ;;
    apt-get:compiler) echo gcc libc6-dev ;;
    dnf:compiler) echo gcc glibc-devel ;;
    apt-get:c++) echo g++ ;;
    dnf:c++) echo gcc-c++ ;;
    apt-get:jemalloc) echo libjemalloc2 ;;
    apt-get:tcmalloc) echo libtcmalloc-minimal4 ;;
    dnf:tcmalloc) echo gperftools-libs ;;
    apt-get:musl) echo musl-tools ;;
    dnf:musl) echo musl-gcc ;;
    *:pidstat) echo sysstat ;;
    *:drgn) echo python3-drgn ;;
    dnf:debuginfod) echo elfutils-debuginfod-client ;;
    apt-get:qemu) echo qemu-system-x86 ;;
    apt-get:qemu-arm) echo qemu-system-arm ;;
    apt-get:qemu-user) echo qemu-user-static ;;
    apt-get:cross-compiler) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross ;;
    apt-get:busybox) echo busybox-static ;;
    apt-get:perf) echo linux-perf ;;
    apt-get:memleak) echo bpfcc-tools ;;
    apt-get:redis) echo redis-server redis-tools ;;
    # Older releases have it in a package that QEMU's needs.
    apt-get:virtiofsd) if apt-cache show virtiofsd >/dev/null 2>&1; then echo virtiofsd; fi ;;
    *) echo "$1" ;;
    esac
}

is_for_kernels() { [ "$purpose" = kernels ] || [ "$purpose" = arm64 ]; }

is_for_tests() { [ "$purpose" = test ] || is_for_kernels; }

has_library() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -q "$1"; }

# A guest's first program has no C library around it.
is_static() { [ -x "$1" ] && ! readelf -d "$1" | grep -q NEEDED; }

missing_things() {
    "$python" -c 'import bcc' 2>/dev/null || echo bcc
    "$python" -c 'import ensurepip' 2>/dev/null || echo venv
    [ "$purpose" = use ] || has cc || echo compiler
    if is_for_tests; then
        has c++ || echo c++
        has clang || echo clang
        has ld.lld || echo lld
        has llvm-symbolizer || echo llvm
        has strace || echo strace
        has objcopy || echo binutils
        has debuginfod-find || echo debuginfod
    fi
    if is_for_kernels; then
        has qemu-system-x86_64 || echo qemu
        is_static /bin/busybox || echo busybox
        has mmdebstrap || echo mmdebstrap
        [ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ] || echo virtiofsd
    fi
    if [ "$purpose" = arm64 ]; then
        has qemu-system-aarch64 || echo qemu-arm
        has qemu-aarch64-static || has qemu-aarch64 || echo qemu-user
        has aarch64-linux-gnu-gcc || echo cross-compiler
    fi
}

# What needs one of these is left out without it: not every distribution has them.
missing_extras() {
    # PyPI has builds of it for x86-64 only; without it stacks are what frame pointers say.
    [ "$(uname -m)" = x86_64 ] || "$python" -c 'import drgn' 2>/dev/null || echo drgn
    if [ "$purpose" = bench ]; then
        has strace || echo strace
        has perf || echo perf
        has bpftrace || echo bpftrace
        has memleak-bpfcc || echo memleak
        has redis-server || echo redis
    fi
    is_for_tests || return 0
    has musl-gcc || echo musl
    has bpftool || echo bpftool
    has pidstat || echo pidstat
    has_library libjemalloc || echo jemalloc
    has_library libtcmalloc || echo tcmalloc
}

as_root() {
    [ "$(id -u)" = 0 ] || die "not root, and these are missing: $*. Run it with sudo"
}

install_packages() {
    case $manager in
    apt-get)
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 "$@" >/dev/null
        ;;
    dnf) dnf install -y -q "$@" >/dev/null ;;
    esac
}

install_missing() {
    things=$(missing_things)
    extras=$(missing_extras)
    [ -n "$things$extras" ] || return 0
    manager=$(package_manager)
    # Words are split on purpose: these are lists of names.
    # shellcheck disable=SC2086
    as_root $things $extras
    if [ "$manager" = apt-get ]; then
        apt-get update -qq -o DPkg::Lock::Timeout=300 || say "apt-get update failed: going on with the lists there are"
    fi
    packages=
    for thing in $things; do packages="$packages $(package_of "$thing")"; done
    if [ -n "$packages" ]; then
        say "installing$packages"
        # shellcheck disable=SC2086
        install_packages $packages || die "$manager could not install$packages"
    fi
    for thing in $extras; do
        # shellcheck disable=SC2046
        install_packages $(package_of "$thing") || say "no $thing here: what needs it is left out"
    done
}

make_venv() {
    if [ -x $venv/bin/python ] && $venv/bin/python -c 'import bcc' 2>/dev/null; then
        return
    fi
    say "making $venv with $python"
    "$python" -m venv --clear --system-site-packages $venv
    # Editable installs of projects without a setup.py came with pip 21.3.
    $venv/bin/python -m pip install -q 'pip>=21.3'
}

install_package() {
    wanted=.
    if is_for_tests; then wanted='.[test,lint]'; fi
    if [ "$purpose" = fuzz ]; then wanted='.[fuzz]'; fi
    $venv/bin/python -m pip install -q --disable-pip-version-check --editable "$wanted"
}

install_missing
has "$python" || die "$python is missing: set PYTHON to the Python that your distribution's bcc is for"
make_venv
install_package
