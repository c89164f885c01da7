#!/usr/bin/env bash
# Evaluate on several GPUs: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On several machines, start it on each with NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
config=${1:?CONFIG is missing} checkpoint=${2:?CHECKPOINT is missing} gpus=${3:?GPUS is missing}
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
