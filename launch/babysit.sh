#!/usr/bin/env bash
# Keeps a run on a Cloud TPU VM going until it is done, although the VM may be taken away.
#
#   launch/babysit.sh FLAG...    starts `python -m kdih.main FLAG...` on the VM, and watches it
#   launch/babysit.sh            watches the run that was started last
#
# Environment variables: those of tpu_vm.sh, and
#   POLL           seconds between two checks of the run; 60
#   WAIT, MAX_WAIT seconds to wait after a failure, twice as long each time, and at most; 30, 600
#   TRIES          failures in a row after which it gives up; 100
#
# A pre-empted VM is deleted, created, set up and started again. Exit code: 0 if the run is done; 1
# or 2 if the run ended with it; 2 if a setting is wrong; 1 after too many failures. The VM is not
# deleted. This script may be stopped at any time: the run continues, and `launch/babysit.sh`
# without flags watches it again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

# vm VERB...: returns nonzero if it failed and may be tried again; ends the script if it cannot
# work.
vm() {
  local code=0
  say "$NAME: $1"
  "${BASH_SOURCE[0]%/*}/tpu_vm.sh" "$@" || code=$?
  if ((code == 2)); then refuse "$NAME: $1 cannot work; fix the setting that is named above"; fi
  return "$code"
}

hopeful() {
  failures=0 pause=$WAIT
}

# failed WHAT: waits, or ends the script after too many failures.
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
      say "$NAME: the run is done; \`launch/tpu_vm.sh delete\` deletes the VM, which costs money"
      exit 0
      ;;
    1 | 2)
      say "$NAME: the run failed with exit code $1; \`launch/tpu_vm.sh logs\` shows why"
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
      ((${#flags[@]} == 0)) ||
        refuse "$NAME: another run is in progress; start babysit.sh without flags to watch it"
      sleep "$POLL"
      ;;
    ended*) if ((${#flags[@]})); then set_up; else ended "${state#ended }"; fi ;;
    *) failed "$state" ;;
  esac
}

# The VM's disk is deleted with the VM.
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
