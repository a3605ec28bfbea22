#!/bin/sh
# Runs from the disk as process 1: makes a usual system, runs /command, and tells its exit status.
# The kernel has handed MEMTRACE_GUEST on from its command line: the name of the boot.
# The kernel's console is ttyS0; the command's output goes to ttyS1; ttyS2 is between this script and xtask.
export PATH=/bin HOME=/root TERM=dumb RUST_BACKTRACE=1 MEMTRACE_BIN=/bin/memtrace MEMTRACE_GUEST
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tracefs tracing /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
if [ "$MEMTRACE_GUEST" != v1 ]; then
    mount -t cgroup2 cgroup /sys/fs/cgroup && echo +memory > /sys/fs/cgroup/cgroup.subtree_control
fi
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
echo hello > /dev/ttyS2
cd /root
/bin/sh /command < /dev/null > /dev/ttyS1 2>&1
echo "exit $?" > /dev/ttyS2
poweroff -f -n
