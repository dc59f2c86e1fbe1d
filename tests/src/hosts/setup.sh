# Makes this process's own namespaces look like a fresh host: run by `unshare` with a network, mounts and a name of its own.
# Arguments: its name, a directory of its own, the program under test, the repository, the directory of the stand-ins.
set -eu
name=$1 dir=$2 program=$3 repository=$4 stand_ins=$5

hostname "$name"
# Changes to the system's directories go to memory and end with the host.
mkdir -p "$dir/changes"
mount -t tmpfs -o mode=755 tmpfs "$dir/changes"
for part in etc usr; do
  mkdir -p "$dir/changes/$part/upper" "$dir/changes/$part/work"
  mount -t overlay overlay -o "lowerdir=/$part,upperdir=$dir/changes/$part/upper,workdir=$dir/changes/$part/work" "/$part"
done
touch /usr/bin/alba
mount --bind "$program" /usr/bin/alba
for daemon in alba-metadata:metadata asd-server:asd-server alba-proxy:proxy alba-maintenance:maintenance alba-rebalancer:rebalancer; do
  file=/usr/bin/${daemon%%:*}
  printf '#!/bin/sh\nexec /usr/bin/alba %s "$@"\n' "${daemon##*:}" > "$file"
  chmod 755 "$file"
done
for command in systemctl ssh; do
  install -m 755 "$stand_ins/$command" "/usr/local/bin/$command"
done

# Data is on the disk, as the test's other files are.
mkdir -p "$dir/disk/root/packaging" "$dir/disk/srv" "$dir/disk/var-lib"
chmod 700 "$dir/disk/root"
mount --bind "$repository/packaging" "$dir/disk/root/packaging"
mount --rbind "$dir/disk/root" /root
mount --bind "$dir/disk/srv" /srv
mount --bind "$dir/disk/var-lib" /var/lib
for d in 1 2 3 4; do
  mkdir -p "/srv/alba/disk$d"
  mount --bind "/srv/alba/disk$d" "/srv/alba/disk$d"
done

ip link set lo up
echo ready
# Until the test closes the other end, however it ends: then all of this is gone.
exec cat > /dev/null
