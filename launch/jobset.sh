#!/usr/bin/env bash
# Starts the job of launch/jobset.yaml, or says what its command takes.
#   launch/jobset.sh              applies the file with kubectl
#   launch/jobset.sh --dry_run    forecasts the command in the file; starts nothing
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in
  *" --dry_run "*)
    args=$(sed -n 's/^ *args: \[\(.*\)\]$/\1/p' launch/jobset.yaml)
    IFS=', ' read -r -a words <<<"$args"
    exec launch/local.sh train "${words[@]}" "$@"
    ;;
esac
exec kubectl apply -f launch/jobset.yaml "$@"
