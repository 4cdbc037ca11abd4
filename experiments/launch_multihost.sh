#!/usr/bin/env bash
# Several processes of one training run. On a TPU pod this script is not needed: on every host,
#
#   python -m experiments.train --config=configs/resnet18_gpu.py:trades --workdir=gs://bucket/run --multihost
#
# Elsewhere, run this script once per process:
#
#   COORDINATOR=host0:1234 NUM_PROCESSES=2 PROCESS_ID=0 experiments/launch_multihost.sh --config=... --workdir=...
#
# or let it start all processes on this machine:
#
#   NUM_PROCESSES=2 experiments/launch_multihost.sh --config=configs/oct_phantom.py --workdir=/tmp/two
#
# The workdir must be a place that all processes share. The batch size must be a multiple of the number of devices.
set -euo pipefail
: "${NUM_PROCESSES:?set NUM_PROCESSES}"
COORDINATOR=${COORDINATOR:-127.0.0.1:12355}
PYTHON=${PYTHON:-python}

process() {
  "$PYTHON" -m experiments.train "$@" --coordinator_address="$COORDINATOR" --num_processes="$NUM_PROCESSES"
}

if [[ -n "${PROCESS_ID:-}" ]]; then
  process "$@" --process_id="$PROCESS_ID"
else
  trap 'kill $(jobs -p) 2>/dev/null || true' INT TERM
  pids=()
  for ((id = 0; id < NUM_PROCESSES; id++)); do
    process "$@" --process_id="$id" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
fi
