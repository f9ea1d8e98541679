#!/bin/sh
# The lab's first stage, in busybox: the machine's root, read-only, below a tmpfs.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order

nine() {
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$1" "$2" "$3" || exec sh
}

nine ro,cache=loose root /ro
mount -t tmpfs -o size=6g tmpfs /rw
mkdir /rw/up /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work overlay /new || exec sh
mount -t tmpfs -o mode=755 run /new/run
for each in dev proc sys; do mount --move "/$each" "/new/$each"; done
mkdir -p /new/run/lab /new/usr/lib/modules
nine rw,cache=none lab /new/run/lab
nine ro,cache=loose modules /new/usr/lib/modules
exec switch_root /new /bin/bash /run/lab/guest.sh
