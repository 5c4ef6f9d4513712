#!/usr/bin/env bash
# Builds the image where no Docker engine runs, as root, by Debian's buildah and debootstrap, and tries it:
#
#   apt-get install --no-install-recommends buildah debootstrap
#   docker/build-without-docker.sh /path/to/storage        # needs 40 GB there, of which 7 GB are the image
#   buildah --root /path/to/storage/images --storage-driver vfs push lit-robust docker-archive:lit-robust.tar
#
# The base is a Debian that debootstrap makes, under the name that the Dockerfile gives. The storage is plain folders
# (vfs) and a build step a chroot, so that neither overlay mounts nor namespaces are needed.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

[[ $# -eq 1 ]] || {
    echo "usage: docker/build-without-docker.sh STORAGE" >&2
    exit 2
}
mkdir -p "$1"
storage=$(realpath "$1")
base=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
image=lit-robust
tool() { buildah --root "$storage/images" --runroot "$storage/run" --storage-driver vfs "$@"; }

if ! tool inspect --type image "$base" >/dev/null 2>&1; then
    [[ -d $storage/base ]] ||
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$storage/base"
    container=$(tool from scratch)
    tool add "$container" "$storage/base" /
    tool config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    tool commit --rm "$container" "$base"
fi

# uv's packages, if they are on this machine already, and its certificates.
shared=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
[[ ! -d $HOME/.cache/uv ]] || shared+=(--volume "$HOME/.cache/uv:/root/.cache/uv")
tool build --isolation=chroot --network=host --pull-never --layers=false "${shared[@]}" \
    --build-arg SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    --build-arg PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    --file docker/Dockerfile --tag "$image" .

container=$(tool from --pull-never "$image")
root=$(tool mount "$container")
du --summarize --human-readable "$root"
docker/try.sh "$root"
tool rm "$container" >/dev/null
