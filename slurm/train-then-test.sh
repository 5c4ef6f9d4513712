#!/usr/bin/env bash
# A training, and the test of what it wrote, as two jobs; the second waits for the first to succeed:
#
#   slurm/train-then-test.sh --gpus-per-node=1 -- -c configs/imagenet/madry.yaml --data.root /path/to/data
#   slurm/train-then-test.sh [SBATCH OPTIONS] -- FIT'S OPTIONS -- TEST'S OPTIONS
#
# The test has the training's options where it is given none. LIT_ROBUST_CHECKPOINT=best tests best.ckpt [last]. Prints
# both jobs' numbers.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
options=() fit=() test=()
part=options
for word in "$@"; do
    case $word:$part in
    --:options) part=fit ;;
    --:fit) part='test' ;;
    *:options) options+=("$word") ;;
    *:fit) fit+=("$word") ;;
    *) test+=("$word") ;;
    esac
done
if [[ ${#fit[@]} -eq 0 ]]; then
    echo "usage: slurm/train-then-test.sh [SBATCH OPTIONS] -- FIT'S OPTIONS [-- TEST'S OPTIONS]" >&2
    exit 2
fi
[[ ${#test[@]} -gt 0 ]] || test=("${fit[@]}")

training=$(sbatch --parsable "${options[@]}" "$here/run.sbatch" fit "${fit[@]}")
training=${training%%;*} # a cluster's name may follow
name=$(squeue --noheader --jobs="$training" --format=%j)
checkpoint=${LIT_ROBUST_RUNS:-runs}/$name-$training/checkpoints/${LIT_ROBUST_CHECKPOINT:-last}.ckpt
testing=$(sbatch --parsable --dependency="afterok:$training" --kill-on-invalid-dep=yes "${options[@]}" \
    "$here/run.sbatch" test "${test[@]}" --ckpt_path "$checkpoint")
echo "$training ${testing%%;*}"
