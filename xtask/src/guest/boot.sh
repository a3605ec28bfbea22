#!/bin/busybox sh
# Runs from memory: loads the disk's driver and goes on from the disk.
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules); do
    /bin/busybox insmod "/lib/$module.ko"
done
if ! /bin/busybox mount -t ext4 /dev/vda /disk; then
    /bin/busybox stty -F /dev/ttyS2 raw
    echo "failed this kernel cannot mount the disk: it needs virtio_blk and ext4, and its modules in lib/modules" > /dev/ttyS2
    /bin/busybox poweroff -f -n
fi
exec /bin/busybox switch_root /disk /init
