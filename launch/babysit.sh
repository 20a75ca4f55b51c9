#!/usr/bin/env bash
# Keeps a run going on a Cloud TPU VM that may be taken away, until it is done.
#
#   launch/babysit.sh FLAG...    starts `python -m kdih.main FLAG...`, as tpu_vm.sh would, and stays
#   launch/babysit.sh            stays with the run that was last started
#
# Environment variables: those of tpu_vm.sh, and
#   POLL           seconds between two looks at the run; 60
#   WAIT, MAX_WAIT seconds to wait after something failed, twice as long each time; 30, 600
#   TRIES          how often in a row something may fail; 100
#
# A pre-empted VM is deleted, created, set up and started again. Exit code: 0 when the run is done;
# 1 or 2 when it ended so, a setting is wrong, or nothing helps. The VM stays: delete it yourself.
# This script may be stopped at any time; the run goes on, and `launch/babysit.sh` takes over again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

# vm VERB...: false where it failed and may be tried again.
vm() {
  local code=0
  say "$NAME: $1"
  "${BASH_SOURCE[0]%/*}/tpu_vm.sh" "$@" || code=$?
  if ((code == 2)); then refuse "$NAME: $1 cannot work; mend what is said above"; fi
  return "$code"
}

hopeful() {
  failures=0 pause=$WAIT
}

# failed WHAT: waits, or gives up.
failed() {
  failures=$((failures + 1))
  if ((failures >= TRIES)); then
    say "$NAME: $1, $failures times in a row; giving up"
    exit 1
  fi
  say "$NAME: $1; trying again in $pause seconds"
  sleep "$pause"
  pause=$((pause * 2 < MAX_WAIT ? pause * 2 : MAX_WAIT))
}

start() {
  if ((${#flags[@]})); then
    vm run "${flags[@]}" || { failed 'did not start'; return; }
    flags=()
  else
    vm resume || failed 'did not start'
  fi
}

set_up() {
  if vm setup; then start; else failed 'could not be set up'; fi
}

create() {
  if vm create; then
    hopeful
    set_up
  else
    failed 'could not be created'
  fi
}

replace() {
  say "$NAME: was pre-empted"
  if vm delete; then create; else failed 'could not be deleted'; fi
}

# ended CODE
ended() {
  case $1 in
    0)
      say "$NAME: the run is done; \`launch/tpu_vm.sh delete\` ends what the VM costs"
      exit 0
      ;;
    1 | 2)
      say "$NAME: the run failed with exit code $1; \`launch/tpu_vm.sh logs\` says why"
      exit "$1"
      ;;
    75)
      say "$NAME: the run was asked to stop; starting it again in $WAIT seconds"
      hopeful
      sleep "$WAIT"
      ;;
    *) failed "the run ended with exit code $1" ;;
  esac
  start
}

look() {
  local state
  state=$("${BASH_SOURCE[0]%/*}/tpu_vm.sh" status)
  case $state in
    missing) create ;;
    preempted) replace ;;
    idle) set_up ;;
    running)
      ((${#flags[@]} == 0)) || refuse "$NAME: another run is going on; without flags I stay with it"
      sleep "$POLL"
      ;;
    ended*) if ((${#flags[@]})); then set_up; else ended "${state#ended }"; fi ;;
    *) failed "$state" ;;
  esac
}

# The disk of the VM is lost with it.
check_workdir() {
  case " $* " in
    *' --workdir=gs://'* | *' --workdir=/'*) ;;
    *) refuse '--workdir: must outlive the VM; use gs://BUCKET/..., or a folder mounted there' ;;
  esac
}

main() {
  flags=("$@")
  need PROJECT my-project
  need ZONE us-west4-a
  need ACCELERATOR v5litepod-8
  if (($#)); then check_workdir "$@"; fi
  NAME=${NAME:-kdih} POLL=${POLL:-60} WAIT=${WAIT:-30} MAX_WAIT=${MAX_WAIT:-600} TRIES=${TRIES:-100}
  hopeful
  while true; do look; done
}

main "$@"
