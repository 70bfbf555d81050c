#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice, which find each other.
#   TPU=my-slice ZONE=us-east5-b launch/tpu_pod.sh --config=configs/... --run=/shared/mine
#   launch/tpu_pod.sh --config=... --dry_run      says what that takes; starts nothing
# The repository must be on every worker, in REMOTE (jaxanom in the home directory, unless
# set otherwise). A worker that is preempted saves and exits with 75, and the command is
# repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in *" --dry_run "*) exec launch/local.sh train "$@" ;; esac

notice=http://metadata.google.internal/computeMetadata/v1/instance/preempted
printf -v words '%q ' "$@"
command="cd ${REMOTE:-jaxanom} && JAXANOM_NOTICE_URL=$notice launch/local.sh train $words"
while :; do
  status=0
  gcloud compute tpus tpu-vm ssh "${TPU:?name of the slice}" --zone="${ZONE:?its zone}" \
    --worker=all --command="$command" || status=$?
  [ "$status" -eq 75 ] || exit "$status"
  sleep "${WAIT_S:-60}"
done
