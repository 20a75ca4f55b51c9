#!/usr/bin/env bash
# Manages a Cloud TPU VM, or all workers of a slice.
#
#   launch/tpu_vm.sh create           creates the VM
#   launch/tpu_vm.sh setup            copies this working tree there, and installs it
#   launch/tpu_vm.sh run FLAG...      starts `python -m kdih.main FLAG...`, and returns
#   launch/tpu_vm.sh logs             follows the first worker's log; Ctrl-C does not end the run
#   launch/tpu_vm.sh status           running, ended CODE, idle, preempted, missing, ...
#   launch/tpu_vm.sh stop             asks the run to save and end
#   launch/tpu_vm.sh resume           starts the last run again, in the same workdir
#   launch/tpu_vm.sh delete           deletes the VM and its disk
#
# Environment variables:
#   PROJECT, ZONE  of Google Cloud
#   ACCELERATOR    its type: v5litepod-8 is one VM, v5litepod-16 a slice; `create` needs it
#   NAME           name of the VM; kdih
#   VERSION        version of the image; by default the one for JAX on ACCELERATOR
#   SPOT           no, or yes: cheap, but it may be taken away at any time; see babysit.sh
#
# A slice needs a workdir that all workers can use: gs://BUCKET/..., or a folder mounted on all. A
# run on a VM that may be taken away needs one outside of the VM.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"
readonly USAGE='create | setup | run FLAG... | logs | status | stop | resume | delete'
readonly HELPERS='launch/lib.sh launch/on_vm.sh' ON_VM='bash kdih/launch/on_vm.sh'

# cloud VERB ARGUMENT...
cloud() {
  gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE" --quiet
}

# on WORKERS COMMAND: stdin is closed, because ssh would read that of the caller's loop.
on() {
  cloud ssh "$NAME" --worker="$1" --command="$2" \
    --ssh-flag='-o ConnectTimeout=30 -o ServerAliveInterval=30' </dev/null
}

image() {
  case $ACCELERATOR in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  need ACCELERATOR v5litepod-8
  local spot=()
  if [[ $SPOT == yes ]]; then spot=(--spot); fi
  cloud create "$NAME" --accelerator-type="$ACCELERATOR" --version="${VERSION:-$(image)}" \
    "${spot[@]}"
}

# Prints the files of the working tree that git does not ignore, changed and new ones included.
files() {
  git ls-files -z --cached --others --exclude-standard --deduplicate |
    while IFS= read -r -d '' path; do
      if [[ -e $path ]]; then printf '%s\0' "$path"; fi
    done
}

setup() {
  cd "$ROOT"
  git rev-parse --is-inside-work-tree >/dev/null || refuse "$ROOT is no git working tree"
  files | tar --null --files-from=- -czf "$scratch/kdih.tar.gz"
  cloud scp "$scratch/kdih.tar.gz" "$NAME:kdih.tar.gz" --worker=all
  on all "mkdir -p kdih && tar -xzf kdih.tar.gz -C kdih $HELPERS && $ON_VM setup"
}

run() {
  local like='--config=configs/cifar100.py --workdir=gs://BUCKET/cifar100'
  (($#)) || refuse "run: has no flags for kdih.main; add them, for instance $like"
  free
  mkdir -p "${last%/*}"
  quoted "$@" >"$last"
  start
}

resume() {
  [[ -f $last ]] || refuse "resume: no run was started on $NAME from here; start one with \`run\`"
  free
  start
}

free() {
  [[ $(status) != running ]] || refuse "$NAME: a run is in progress; see \`logs\`, or \`stop\` it"
}

start() {
  local code=0
  on all "$ON_VM start $(<"$last")" || code=$?
  if ((code)); then  # Workers that have started would wait for the others.
    on all "$ON_VM stop" || say "some workers of $NAME may still run; see \`status\`"
  fi
  return "$code"
}

logs() {
  on 0 "$ON_VM logs"
}

stop() {
  on all "$ON_VM stop"
}

delete() {
  cloud delete "$NAME"
}

status() {
  local state
  if ! state=$(cloud describe "$NAME" --format='value(state)' 2>"$scratch/reason"); then
    if grep -q NOT_FOUND "$scratch/reason"; then echo missing; return; fi
    cat "$scratch/reason" >&2
    echo unreachable
    return
  fi
  case $state in
    READY) run_status ;;
    PREEMPTED | TERMINATED) echo preempted ;;
    *) echo "not ready: $state" ;;
  esac
}

# Prints the status of all workers: running if one is running, else idle if one is idle.
run_status() {
  local lines
  if ! lines=$(on all "if test -f kdih/launch/on_vm.sh; then $ON_VM status; else echo idle; fi")
  then
    echo unreachable
  elif [[ $lines == *running* ]]; then
    echo running
  elif [[ $lines == *idle* ]]; then
    echo idle
  else
    # shellcheck disable=SC2086
    echo "ended $(worst ${lines//ended/})"
  fi
}

main() {
  case ${1:-} in
    create | setup | run | logs | status | stop | resume | delete) ;;
    *) refuse "usage: launch/tpu_vm.sh $USAGE" ;;
  esac
  need PROJECT my-project
  need ZONE us-west4-a
  NAME=${NAME:-kdih} SPOT=${SPOT:-no}
  [[ $SPOT == yes || $SPOT == no ]] || refuse "SPOT: is '$SPOT'; set it to yes or no"
  command -v gcloud >/dev/null || refuse 'gcloud: is not installed; see cloud.google.com/sdk'
  ROOT=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
  last=${XDG_STATE_HOME:-$HOME/.local/state}/kdih/$PROJECT.$ZONE.$NAME
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  "$@"
}

main "$@"
