#!/usr/bin/env bash
# Many runs as a job array, one for each line of a file of arguments, each in a folder of its own:
#
#   slurm/sweep.sh sweep.txt --gpus-per-node=1 --array=1-3%2 -- fit -c configs/imagenet/madry.yaml
#
# where a line of sweep.txt is, for example,
#
#   --model.attack.eps 0.5 --model.attack.step_size 0.1 --seed_everything 1
#
# Options before `--` are sbatch's (--array chooses lines, all by default). Empty lines and those that begin with # do
# not count. The lines are copied: those of the jobs stay what they were.
set -euo pipefail

usage() {
    echo "usage: slurm/sweep.sh FILE [SBATCH OPTIONS] -- COMMAND [OPTIONS]" >&2
    exit 2
}
here=$(dirname "$(realpath "$0")")
[[ $# -gt 0 ]] || usage
[[ -f $1 ]] || {
    echo "slurm/sweep.sh: there is no file $1: name one with a run's arguments in each line." >&2
    exit 2
}
file=$1
shift
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
    options+=("$1")
    shift
done
[[ $# -gt 1 ]] || usage
shift

runs=${LIT_ROBUST_RUNS:-runs}
mkdir -p "$runs"
lines=$(mktemp "$(realpath "$runs")/sweep-XXXXXX.txt")
grep -Ev '^[[:space:]]*(#|$)' "$file" >"$lines" || {
    rm "$lines"
    echo "slurm/sweep.sh: $file holds no line: write a run's arguments in each." >&2
    exit 2
}
LIT_ROBUST_LINES=$lines sbatch --parsable --array="1-$(wc -l <"$lines")" --output=%x-%A_%a.out \
    "${options[@]}" "$here/run.sbatch" "$@"
