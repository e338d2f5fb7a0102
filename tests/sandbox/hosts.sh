#!/usr/bin/env bash
# hosts.sh up N | down | can | [-x] HOST COMMAND...
#
# Hosts h1..hN on this machine (Linux, root): namespaces with a network address, a hostname, processes and a /dev/shm of their
# own, so that MPI sees separate machines and needs TCP between them. Files are shared, but for $SANDBOX/tmp. The last form is
# an agent that Open MPI takes for ssh:
#
#   hosts.sh up 3 && mpirun --prtemca plm_ssh_agent $PWD/hosts.sh --host h1:2,h2:2,h3:2 python -m mpiprop run toy
#
# SANDBOX (default /tmp/mpiprop-sandbox): a folder for what it keeps; another folder, other hosts. Host hI has the address
# NET.I, this machine NET.254, where NET is what $SANDBOX/net says.

SANDBOX=${SANDBOX:-/tmp/mpiprop-sandbox}
id=$(($(cksum <<<"$SANDBOX" | cut -d ' ' -f 1) % 250))
bridge=mpiprop$id net=10.77.$id

can() {
    command -v ip nsenter unshare >/dev/null || { echo "no ip, nsenter or unshare (iproute2, util-linux)"; return 1; }
    unshare --net --uts --mount --ipc --pid --fork --mount-proc \
        sh -c 'ip link add name br0 type bridge && ip link add name v0 type veth peer name v1' 2>/dev/null \
        || { echo "no namespaces with bridges here (not root?)"; return 1; }
}

up() {
    down
    mkdir -p "$SANDBOX/tmp"
    ip link add "$bridge" type bridge && ip addr add "$net.254/24" dev "$bridge" && ip link set "$bridge" up || return 1
    echo "$net" >"$SANDBOX/net"
    local i inside
    for ((i = 1; i <= $1; i++)); do
        mkdir -p "$SANDBOX/h$i"
        mkfifo "$SANDBOX/ready"
        setsid unshare --net --uts --mount --ipc --pid --fork --kill-child --mount-proc bash -c "hostname h$i
            mount -t tmpfs tmpfs /dev/shm; mount --bind '$SANDBOX/h$i' '$SANDBOX/tmp'; echo >'$SANDBOX/ready'
            exec sleep infinity" </dev/null >/dev/null 2>&1 &
        read -r _ <"$SANDBOX/ready"
        rm "$SANDBOX/ready"
        read -r inside _ <"/proc/$!/task/$!/children"
        echo "$! $inside" >"$SANDBOX/h$i/pid"
        ip link add "mpiprop${id}h$i" type veth peer name eth0 netns "$inside"
        ip link set "mpiprop${id}h$i" master "$bridge" up
        nsenter -t "$inside" --net sh -c "ip addr add $net.$i/24 dev eth0; ip link set eth0 up; ip link set lo up"
    done
}

down() {
    local file pids
    for file in "$SANDBOX"/h*/pid; do
        [ -e "$file" ] || continue
        read -r -a pids <"$file"
        kill -KILL "${pids[@]}" 2>/dev/null  # the first process of a namespace takes all others along
        while readlink "/proc/${pids[1]}/ns/net" >/dev/null; do sleep 0.05; done  # to its end, reaped or not
        rm "$file"
    done
    ip link del "$bridge" 2>/dev/null
    true
}

case ${1:-} in
    can) can ;;
    up) up "$2" ;;
    down) down ;;
    "") sed -n '2,/^$/s/^# \?//p' "$0"; exit 2 ;;
    *)
        while [[ $1 == -* ]]; do shift; done
        read -r _ inside <"$SANDBOX/$1/pid" || exit 255
        export TMPDIR=$SANDBOX/tmp  # in /tmp launchers of another sandbox keep what they know of a host and process so named
        exec nsenter -t "$inside" --net --uts --mount --ipc --pid bash -c "${*:2}" ;;
esac
