#!/usr/bin/env bash
# Train on several GPUs: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On several machines, start it on each with NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
config=${1:?CONFIG is missing} gpus=${2:?GPUS is missing}
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
