#!/bin/bash
# Boots a real systemd as PID 1 of a throwaway machine made of Linux namespaces. tests/machine.rs runs it:
#
#     boot.sh CGROUP SCRATCH BINARY
#
# CGROUP   a cgroup v2 directory to make: the machine's root of the cgroup tree
# SCRATCH  a directory to make: the one place host and machine share for writing, at the same path in both
# BINARY   the program under test: inside, a copy in /usr/local/bin
#
# It stays as the machine's keeper until systemd ends, or until its own stdin ends: however the test dies, the pipe
# closes, and the keeper takes machine, cgroups and scratch away. It runs as root and changes nothing of the host: what
# is written goes to memory, the kernel's settings are read-only.
set -euo pipefail
umask 022 # whatever the caller's is: packages and units expect this one

# The host's side: make what the machine stands on, start it, keep it, clear it away.
keep() {
    readonly cgroup=$1 scratch=$2 binary=$3 # not local: the trap reads them after the function's end
    mkdir --mode=1777 "$scratch"
    trap clear_away EXIT # only now: had the directory been there, it were not ours to remove
    mkdir "$cgroup"

    # The cgroup namespace is not among these: its root is wherever its maker stands, so the child enters CGROUP first.
    # --kill-child: unshare itself shrugs off SIGTERM, and its death by SIGKILL must take the machine along.
    unshare --mount --pid --fork --kill-child --uts --ipc --net \
        bash "$0" enter "$cgroup" "$scratch" "$binary" </dev/null 3<&- &
    cat <&3 >/dev/null 2>&1 &
    exec 3<&-

    # Whichever ends first, machine or stdin, the other goes after it.
    local status=0
    wait -n || status=$?
    kill -KILL $(jobs -pr) 2>/dev/null || true
    wait
    return "$status"
}

# A killed machine needs a moment until its last process has left its cgroup.
clear_away() {
    local try
    for try in {1..100}; do
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [[ -d $cgroup ]] || break
        sleep 0.05
    done
    rm -rf --one-file-system "$scratch"
}

# PID 1 of the new namespaces, still in the host's cgroup. "0" is the writer itself, in whichever PID namespace.
enter() {
    echo 0 >"$1/cgroup.procs"
    shift
    exec unshare --cgroup bash "$0" furnish "$@"
}

# PID 1 in the machine's own cgroup: build the machine's root, move into it, become systemd.
furnish() {
    local scratch=$1 binary=$2
    local root=/run/root

    # The machine's disk: the host's files to read, memory for all that is written. unshare made all mounts private,
    # so the host keeps its /run; --no-mtab, for this one mount would leave a note there.
    mount --no-mtab -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/upper /run/work $root
    mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay $root
    install -m 0755 "$binary" "$root/usr/local/bin/" # may lie where only root can go; here anyone may execute it

    # Empty, each for its reason. /tmp, /var/tmp: systemd-tmpfiles empties them at boot, file by file. /run, /home: the
    # host's. Journal: the host's is long; and a directory there makes journald persistent, without which it keeps no
    # journal per user, and `journalctl --user` finds none. /etc/systemd: the host's enabled units and settings.
    # Generators: they would bring in the host's fstab, getties and databases. Linger: the host's users.
    blank 755 $root/run
    blank 1777 $root/tmp
    blank 1777 $root/var/tmp
    blank 755 $root/home
    blank 755 $root/var/log/journal
    blank 755 $root/var/lib/systemd/linger
    blank 755 $root/etc/systemd
    blank 755 $root/usr/lib/systemd/system-generators

    mkdir -p "$root$scratch"
    mount --bind "$scratch" "$root$scratch"
    kernel $root

    mkdir $root/run/host
    cd $root
    pivot_root . run/host
    umount --lazy /run/host
    rmdir /run/host

    person
    masks

    # Its own identity, so that neither journal nor boot confuse it with the host.
    tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
    echo machine >/etc/hostname
    ip link set lo up

    # What a container's manager owes systemd: shared propagation, which service sandboxes count on.
    mount --make-rshared /

    # `container` tells systemd to leave the kernel's settings, clock and modules alone.
    exec env -i container=box PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal-or-kmsg --show-status=false
}

# An empty directory in memory in place of the host's.
blank() {
    mkdir -p "$2"
    mount -t tmpfs -o "mode=$1" tmpfs "$2"
}

# The kernel's file systems, as these namespaces see them. A /dev of its own, since journald links /dev/log and
# tmpfiles makes nodes. Without kmsg: journald would import the host's kernel log, and systemd would write into it.
kernel() {
    local root=$1 node
    mount -t proc proc "$root/proc"
    # At boot systemd lifts limits that are the whole kernel's (fs.file-max), in containers too: it must not reach them.
    # The one it lifts per network is set in its stead.
    echo 512 >"$root/proc/sys/net/unix/max_dgram_qlen"
    mount --bind --options ro "$root/proc/sys" "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
        cp --archive "/dev/$node" "$root/dev/"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s /proc/self/fd/0 "$root/dev/stdin"
    ln -s /proc/self/fd/1 "$root/dev/stdout"
    ln -s /proc/self/fd/2 "$root/dev/stderr"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
}

# The user, uid 1000, whom the host may have given to another. The linger file is what `loginctl enable-linger` makes:
# logind finds it at boot and starts the user's manager.
person() {
    local other
    other=$(getent passwd 1000 | cut -d: -f1) && userdel --force "$other" 2>/dev/null || true
    getent group 1000 >/dev/null && groupdel --force "$(getent group 1000 | cut -d: -f1)" || true
    groupadd --gid 1000 person
    useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash person
    touch /var/lib/systemd/linger/person
}

# Static units, wanted by no setting of the host, that wait for devices, load modules, remount, tidy by the clock, or
# write to the one kernel that host and machine share (sysctl, binfmt, audit).
masks() {
    local unit
    mkdir /etc/systemd/system /etc/systemd/user
    for unit in \
        getty.target console-getty.service \
        systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
        systemd-modules-load.service kmod-static-nodes.service modprobe@.service systemd-remount-fs.service \
        systemd-sysctl.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
        systemd-journald-audit.socket systemd-network-generator.service \
        dev-hugepages.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
        sys-fs-fuse-connections.mount systemd-tmpfiles-clean.timer; do
        ln -s /dev/null "/etc/systemd/system/$unit"
    done
}

case ${1-} in
enter | furnish) "$@" ;;
*) keep "$@" 3<&0 </dev/null ;;
esac
