#!/bin/sh
# dom0's init: mounts, modules, Xen's toolstack, then the job (lab.dom0.main) or a shell, then power off.
# It is added to the initramfs at each run, with the project at /opt/project.
for xen in /usr/lib/xen-4.*/bin; do export PATH="$xen:/usr/sbin:/usr/bin:/sbin:/bin"; done
export HOME=/root LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONPATH=/opt/project/src:/opt/project:/opt/site PYTHONFAULTHANDLER=1

mount -a # /etc/fstab
mkdir -p /run/lock /run/xen
modprobe -a virtio_pci 9pnet_virtio 9p xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs
mount -t xenfs xenfs /proc/xen
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 results /results
stage() { echo "$1" > /results/.stage; }

stage "starting xenstored"
mkdir -p /results/console
ulimit -n 65536
xenstored --pid-file=/run/xen/xenstored.pid
n=0
until xenstore-read -s / > /dev/null 2>&1; do
    n=$((n + 1))
    [ $n -gt 300 ] && { stage "xenstored did not start"; break; }
    sleep 0.1
done
stage "initialising dom0"
xen-init-dom0
xenconsoled --log=all --log-dir=/results/console --pid-file=/run/xen/xenconsoled.pid
hostname dom0
ip link set lo up

cd /opt/project
if grep -q '"job"' run.json; then
    stage "running the job"
    python3 -m lab.dom0.main > /results/job.log 2>&1
    echo $? > /results/.status.new && mv /results/.status.new /results/.status
fi
if [ -e interactive ]; then
    stage "shell"
    echo "lab: a shell in dom0. exit, or Ctrl-A x, ends it. Results: /results. Project: /opt/project."
    setsid -c bash -l < /dev/hvc0 > /dev/hvc0 2>&1
fi
echo o > /proc/sysrq-trigger
sleep 60
