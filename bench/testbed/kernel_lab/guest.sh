#!/bin/bash
# The lab's second stage: what systemd does at a boot, then the command, then power off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /dev/pts /dev/shm /dev/hugepages /run/lock /run/netns
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t hugetlbfs huge /dev/hugepages
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debug /sys/kernel/debug
. /run/lab/environment
case $PWD/ in /tmp/*) ;; *) mount -t tmpfs -o mode=1777 tmp /tmp ;; esac
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -sfn "${link#*:}" "/dev/${link%%:*}"
done
# As kmod-static-nodes.service: the first to open one has its module loaded.
kmod static-nodes --format=tmpfiles | while read -r kind path mode _ _ _ device; do
    case $kind in
    d) mkdir -p "$path" ;;
    [cb]!) [ -e "$path" ] || mknod -m "$mode" "$path" "${kind%!}" "${device%:*}" "${device#*:}" ;;
    esac
done
modprobe -q kvm_amd # udev would, for the processor that it sees
hostname lab
ip link set lo up
stty -F /dev/hvc0 raw -echo
echo "kernel lab: Linux $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s" >/dev/hvc0
trap : CHLD
out=/dev/hvc0 copier=
if [ "$TERM" = dumb ]; then # no terminal outside: the command must not see one either
    out=/run/output PYTHONUNBUFFERED=1
    export PYTHONUNBUFFERED
    mkfifo "$out"
    cat "$out" >/dev/hvc0 &
    copier=$!
fi
setsid bash /run/lab/command </dev/null >"$out" 2>&1
status=$?
# What the command leaves running may hold the pipe.
[ -z "$copier" ] || timeout 10 tail --pid="$copier" -f /dev/null
echo "$status" >/run/lab/status
dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|RIP|rcu.*stall' >/run/lab/complaints
sync
echo o >/proc/sysrq-trigger
sleep 60
