#!/bin/bash
# PID 1 of a world: a root filesystem on which nothing that is written lasts, but for the folders
# given as arguments, which are the outer ones.  Says "ready" when there is one, then reaps.
set -euo pipefail
new=$1
shift

mount --make-rprivate /
mount -t tmpfs -o mode=755 world "$new"
mkdir "$new"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" world "$new/root"
root=$new/root
for folder; do
  mkdir -p "$root$folder"
  mount --rbind "$folder" "$root$folder"
done

mkdir -p "$root"/{dev,proc,sys,run,tmp}
mount -t proc proc "$root/proc"
# a new one, not the outer one bound: it must show this network namespace's interfaces
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in full fuse kvm loop-control null random tty urandom zero; do
  if [ -c "/dev/$device" ]; then
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  fi
done
for number in {0..63}; do mknod "$root/dev/loop$number" b 7 "$number"; done
mkdir "$root"/dev/{net,pts,shm}
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
# a folder given may lie in /tmp
case " $* " in *" /tmp/"*) ;; *) mount -t tmpfs -o mode=1777 tmp "$root/tmp" ;; esac

cd "$root"
pivot_root . .
umount -l .
cd /
ip link set lo up
echo ready
# bash waits for whatever was orphaned
while true; do sleep 3600 & wait; done
