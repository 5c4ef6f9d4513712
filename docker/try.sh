#!/usr/bin/env bash
# Tries an image's unpacked file system, as root: a tiny training and its test, by a user who owns nothing in it, with
# the root mounted read-only, as `docker run --read-only --user 4242 --tmpfs /tmp --volume ...:/work` would.
set -euo pipefail

root=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chown 4242:4242 "$work"

# shellcheck disable=SC2016 # the inner shell is to expand them
unshare --mount bash -euo pipefail -c '
    mount --bind "$1" "$1"
    mount -o remount,bind,ro "$1"
    mount --bind "$2" "$1/work"
    mount -t tmpfs tmpfs "$1/tmp"
    mount -t tmpfs -o mode=1777 tmpfs "$1/cache"
    mount --bind /dev "$1/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    mount -t proc proc "$1/proc"
    inside() {
        echo "+ ${*:2}"
        env --ignore-environment PATH=/opt/lit-robust/bin:/opt/venv/bin:/usr/sbin:/usr/bin:/bin HOME=/cache USER=lit-robust \
            WANDB_SILENT=true OMP_NUM_THREADS=1 \
            chroot --userspec=4242:4242 "$1" sh -c "cd /work && exec \"\$@\"" sh "${@:2}"
    }
    if inside "$1" touch /opt/written 2>/dev/null; then
        echo "docker/try.sh: the root can be written." >&2
        exit 1
    fi
    inside "$1" lit-robust --help >/dev/null
    inside "$1" lit-robust data toy data --train 101 --test 41 --severities "[3]"
    tiny="--trainer.default_root_dir run --trainer.enable_progress_bar false"
    inside "$1" lit-robust fit -c /opt/configs/toy/standard.yaml --data.root data $tiny --trainer.max_epochs 1
    inside "$1" lit-robust test -c /opt/configs/toy/standard.yaml --data.root data $tiny \
        --ckpt_path run/checkpoints/last.ckpt
    inside "$1" test -s run/results.json
' bash "$root" "$work"
echo "the image works"
