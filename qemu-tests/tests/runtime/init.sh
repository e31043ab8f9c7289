#!/bin/busybox sh
# The first process of a guest that runs the runtime's tests. Mounts what a small system has, with cgroups of version 2
# only, and hands over to busybox' init, which reaps.
if [ "$1" != moved ]; then
    # Nobody can pivot away from an initramfs; from a mount of it one can.
    mkdir /moved
    mount -o bind / /moved
    cd /moved
    mount -o move /moved /
    exec chroot . /init moved
fi
for module in /lib/modules/*; do
    insmod "$module"
done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts
mount -t ext4 /dev/vda /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ifconfig lo up
touch /run/ready
exec init
