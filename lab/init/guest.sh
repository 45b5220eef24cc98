#!/bin/busybox sh
# A guest's init: mounts, modules, then the agent that lab.dom0.guest speaks to over the console.
/bin/busybox --install -s /bin
export PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export PYTHONPATH=/opt/xengrant PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1

mkdir -p /proc /sys /dev /run /tmp /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
for module in xenfs xen-gntalloc xen-gntdev xen-evtchn xen-privcmd; do
    modprobe "$module" || echo "lab: modprobe $module failed"
done
mount -t xenfs xenfs /proc/xen
ip link set lo up
dmesg -n 1 # nothing of the kernel's between an answer's lines
cd /root
setsid -c sh /opt/lab/agent.sh < /dev/hvc0 > /dev/hvc0 2>&1
echo "lab: the agent ended with $?"
poweroff -f
