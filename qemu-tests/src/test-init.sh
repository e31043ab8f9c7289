#!/bin/busybox sh
# The first process of a test's board. Opens the back door, then becomes the real init.
# It uses a folder of its own, so that init finds /dev, /proc and /sys as the kernel left them.
/bin/busybox mkdir /back-door
/bin/busybox --install -s /bin
# A shell wants it for what it starts in the background.
/bin/busybox mknod -m 666 /dev/null c 1 3
/bin/busybox mount -t devtmpfs devtmpfs /back-door
exec 3<>/back-door/@PORT@
/bin/busybox stty raw -echo <&3
# The port stays open; only its folder goes.
/bin/busybox umount -l /back-door
/bin/busybox mount -t proc proc /back-door
(
    echo "@OPEN@"
    # Init moves to another root; /proc/1/root is always where it lives.
    while read -r number line; do
        /bin/busybox chroot /back-door/1/root /bin/busybox sh -c "$line" </dev/null 2>&1
        code=$?
        echo
        echo "#$number $code"
    done
) <&3 >&3 2>&3 3>&- &
exec 3>&-
exec /init
