#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first program in a guest: mounts the host's / below an overlay in memory, runs /command there,
# and writes its exit status, then its report, to where the host reads it.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

# Modules depend on each other, in an order that differs between kernels.
for _ in 1 2; do
    for module in $(cat /modules/list); do
        insmod "/modules/$module" 2>/dev/null
    done
done

end() {
    sync
    poweroff -f
    sleep 60
}

mount -t virtiofs -o ro host /lower || end
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new || end
for directory in proc sys dev; do
    mkdir -p /new/$directory
    mount --move /$directory /new/$directory
done
mount -t tracefs tracefs /new/sys/kernel/tracing
mount -t debugfs debugfs /new/sys/kernel/debug
mount -t bpf bpf /new/sys/fs/bpf
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs tmpfs /new/run
ip link set lo up

cp /command /new/run/command
echo "guest: Linux $(uname -r), up after $(cut -d' ' -f1 /new/proc/uptime) s"
env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot /new /bin/sh /run/command
status=$?
# QEMU's arm64 machine has one serial line only: there the result goes through virtio-serial.
result=/new/dev/vport0p1
[ -e $result ] || {
    result=/new/dev/ttyS1
    stty -F $result raw
}
{
    echo $status
    [ -f /new/run/report.xml ] && cat /new/run/report.xml
} >$result
end
