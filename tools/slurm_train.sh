#!/usr/bin/env bash
# Train under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of tools/train.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS say with what.
set -euo pipefail
partition=${1:?PARTITION is missing} name=${2:?JOB_NAME is missing}
config=${3:?CONFIG is missing} work_dir=${4:?WORK_DIR is missing}
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -ra more <<< "${SRUN_ARGS:-}"
exec srun --partition="$partition" --job-name="$name" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --gres="gpu:$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 "${more[@]}" \
    python -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "${@:5}"
