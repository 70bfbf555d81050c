#!/usr/bin/env bash
# Runs any jaxanom command on this machine, on simulated devices if DEVICES says so.
#   launch/local.sh train --config=configs/defect_generation/folder.py --run=runs/mine
#   DEVICES=8 launch/local.sh train ...      eight simulated CPU devices
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${DEVICES:-}" ]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
PYTHON="${PYTHON:-python}"
[ -x .venv/bin/python ] && PYTHON=.venv/bin/python
exec "$PYTHON" -m jaxanom "$@"
