#!/usr/bin/env bash
# Copies shards to a node's own disk, whole and checked, for run.sbatch with LIT_ROBUST_STAGE=/path/to/data.
#
#   slurm/stage.sh place ROOT               print where the copy lies, the same on every node
#   slurm/stage.sh copy ROOT lit-robust     copy it there, unless it is there already
#
# From the environment:
#   LIT_ROBUST_STAGE_SETS   folders of ROOT to copy, such as "imagenet cue-conflict" [all]
#   LIT_ROBUST_LOCAL        a folder on the nodes' disks [$SLURM_TMPDIR, or /tmp]
set -euo pipefail

verb=$1 root=$(realpath "$2")
shift 2
read -ra sets <<<"${LIT_ROBUST_STAGE_SETS:-.}"
# Names, sizes and times tell one state of the data from the next; hidden files may be an index, made at any time.
state=$(cd "$root" && find -L "${sets[@]}" -type f -not -path '*/.*' -printf '%p %s %T@\n' | sort | cat - <(echo "$root") | sha256sum)
place=${LIT_ROBUST_LOCAL:-${SLURM_TMPDIR:-/tmp}}/lit-robust-$(id -un)/${state:0:16}

case $verb in
place) echo "$place" ;;
copy)
    mkdir -p "$(dirname "$place")"
    exec 9>"$place.lock"
    flock 9 # another job on this node may be copying the same
    if [[ ! -d $place ]]; then
        rm -rf "$place.partial"
        mkdir "$place.partial"
        (cd "$root" && cp --recursive --dereference --preserve=timestamps --parents "${sets[@]}" "$place.partial")
        for set in "${sets[@]}"; do
            "$@" data verify "$place.partial/$set"
        done
        mv "$place.partial" "$place"
    fi
    ;;
*)
    echo "stage.sh: the verb is $verb: give place or copy." >&2
    exit 2
    ;;
esac
