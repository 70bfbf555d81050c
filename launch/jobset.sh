#!/usr/bin/env bash
# Starts launch/jobset.yaml, or tells what its command takes.
#   launch/jobset.sh              kubectl applies the file
#   launch/jobset.sh --dry_run    forecast of the command that stands in the file
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
