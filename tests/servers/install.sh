#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the servers that the tests of this directory run; started as root by `make test-servers`.
# None of them is started as a service: while packages are installed, policy-rc.d says no.
set -eu

policy=/usr/sbin/policy-rc.d

has() { command -v "$1" >/dev/null 2>&1; }

missing() {
    has mariadbd && has mariadb-install-db && has mariadb-slap || echo mariadb
    has redis-server && has redis-benchmark || echo redis
    has memcached || echo memcached
    has javac || echo jdk
    has node || echo node
    has go || echo go
}

package_of() {
    case "$manager:$1" in
    apt-get:mariadb) echo mariadb-server-core mariadb-client ;;
    dnf:mariadb) echo mariadb-server mariadb ;;
    apt-get:redis) echo redis-server redis-tools ;;
    apt-get:jdk) echo default-jdk-headless ;;
    dnf:jdk) echo java-latest-openjdk-devel ;;
    *:node) echo nodejs ;;
    apt-get:go) echo golang-go ;;
    dnf:go) echo golang ;;
    *) echo "$1" ;;
    esac
}

install_packages() {
    case $manager in
    apt-get) DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" >/dev/null ;;
    dnf) dnf install -y -q "$@" >/dev/null ;;
    esac
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
if has apt-get; then manager=apt-get; else manager=dnf; fi
if [ "$manager" = apt-get ]; then
    apt-get update -qq -o DPkg::Lock::Timeout=300 || true
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
fi
for thing in $wanted; do
    # Several packages for some.
    # shellcheck disable=SC2046
    install_packages $(package_of "$thing") || echo "install.sh: no $thing here: its tests will be skipped" >&2
done
