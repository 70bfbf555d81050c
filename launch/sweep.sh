#!/usr/bin/env bash
# Trains one config with each line of a file of keys: an ablation, or a Slurm job array.
#   launch/sweep.sh grid.txt --config=configs/app/folder.py --run=runs/ablation
#   launch/sweep.sh grid.txt ... --dry_run        forecasts every line
#   sbatch --array=1-12 --wrap='launch/sweep.sh grid.txt --config=... --run=...'
# A line is, for example, --config.seed=1 --config.app.num_particles=8. Line N trains in
# RUN/N. A task of a Slurm array takes the line of its number; else all run in turn.
set -euo pipefail
grid=$(realpath "${1:?file with one line of overrides per run}")
shift
cd "$(dirname "$0")/.."

run_line() {
  local number=$1 word
  shift
  local -a changes words=()
  read -r -a changes <<<"$(sed -n "${number}p" "$grid")"
  for word in "$@"; do
    case "$word" in --run=*) word="$word/$number" ;; esac
    words+=("$word")
  done
  launch/local.sh train "${words[@]}" "${changes[@]}"
}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  status=0
  run_line "$SLURM_ARRAY_TASK_ID" "$@" || status=$?
  if [ "$status" -eq 75 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  fi
  exit "$status"
fi
for ((number = 1; number <= $(grep -c '' "$grid"); number++)); do
  run_line "$number" "$@"
done
