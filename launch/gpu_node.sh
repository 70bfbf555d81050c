#!/usr/bin/env bash
# Trains on one machine with several GPUs, one process per GPU.
#   launch/gpu_node.sh --config=configs/app/folder.py --run=runs/mine
#   launch/gpu_node.sh --config=... --dry_run     says what that takes; trains nothing
# GPUS=4 uses four of the GPUs. After SIGTERM the run saves and exits with 75.
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in *" --dry_run "*) exec launch/local.sh train "$@" ;; esac

JAX_NUM_PROCESSES="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
export JAX_NUM_PROCESSES
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-29500}"
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((number = 0; number < JAX_NUM_PROCESSES; number++)); do
  JAX_PROCESS_ID=$number JAX_LOCAL_DEVICE_IDS=$number launch/local.sh train "$@" &
  pids+=("$!")
done
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  # A trapped signal ends `wait` early, while the process is still saving.
  while kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  if [ "$code" -ne 0 ]; then status=$code; fi
done
exit "$status"
