#!/usr/bin/env bash
# Runs a command as one process on each of several hosts that ssh reaches.
#
#   launch/multihost.sh HOSTFILE COMMAND [ARGUMENT...]
#   launch/multihost.sh hosts python -m kdih.main --config=configs/cifar100.py --workdir=/nfs/runs/x
#
# HOSTFILE has one host in each line, [USER@]HOST; `#` begins a comment. All hosts must reach the
# first one by this name. Each COMMAND also gets --coordinator, --num_processes and --process_id.
#
#   DIR    the folder on the hosts in which COMMAND runs; the current folder
#   PORT   the port of the coordinator, which is on the first host; 9876
#   GRACE  seconds from SIGTERM to SIGKILL; 60
#
# Each line of output begins with its host. If one process fails, if Ctrl-C is pressed or if this
# script dies, all processes are stopped. Exit code: 1 or 2 if a process ended with it; else 75 if
# one did (the same command resumes the run); else 0; 130 after Ctrl-C.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

# On a host: runs "$@" until it ends or until stdin ends, which is the request to stop. Then the
# process group of "$@" gets SIGTERM, and SIGKILL if it has not ended after GRACE seconds.
# shellcheck disable=SC2016
readonly ON_HOST='
cd "$1" || exit 2
grace=$2
shift 2
end_group() {
  kill -TERM -- "-$process" || kill -TERM "$process"
  for ((tenths = 0; tenths < 10 * grace; tenths++)); do
    kill -0 -- "-$process" || return 0
    sleep 0.1
  done
  kill -KILL -- "-$process"
}
trap : TERM
exec 3<&0
setsid "$@" </dev/null 3<&- &
process=$!
{ while read -r; do :; done; end_group; } <&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
while kill -0 "$process" 2>/dev/null; do wait "$process"; done 2>/dev/null
wait "$process"
code=$?
{ kill "$watcher"; end_group; } 2>/dev/null
exit "$code"'

read_hosts() {
  [[ -r $1 ]] || refuse "HOSTFILE: $1 cannot be read; write [USER@]HOST into each of its lines"
  mapfile -t hosts < <(sed 's/#.*//' "$1" | awk 'NF { print $1 }')
  ((${#hosts[@]})) || refuse "HOSTFILE: $1 names no host; write [USER@]HOST into each of its lines"
}

label() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s: %s\n' "$1" "$line"
  done
}

# reach HOST COMMAND: runs ssh with both outputs labelled; returns the exit code of ssh.
reach() {
  local options=(-T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15)
  # shellcheck disable=SC2029
  {
    ssh "${options[@]}" "$1" "$2" 2>&1 >&3 3>&- | label "$1" >&2
  } 3>&1 | label "$1"
}

# start NUMBER COMMAND...
start() {
  local together=("--coordinator=${hosts[0]##*@}:$PORT" "--num_processes=${#hosts[@]}"
    "--process_id=$1")
  local command
  command=$(quoted bash -c "$ON_HOST" kdih "$DIR" "$GRACE" "${@:2}" "${together[@]}")
  reach "${hosts[$1]}" "$command" <"$scratch/open" {open}>&- &
  started[$!]=$1
}

# Closes the stdin that all processes share, which asks them to stop.
stop() {
  if [[ -n $open ]]; then exec {open}>&-; fi
  open=''
}

# ended HOST CODE
ended() {
  local code=$2
  if [[ -z $open ]] && ((code > 128)); then code=75; fi  # Stopped here before it could save.
  codes+=("$code")
  ((code)) || return 0
  say "$1 ended with exit code $code"
  if [[ -n $open && ${#started[@]} -gt 1 ]]; then say 'stopping the others'; fi
  stop
}

wait_for_all() {
  local process code
  while ((${#started[@]})); do
    code=0
    wait -n -p process || code=$?
    if [[ -n ${process:-} ]]; then  # Empty if a signal interrupted the wait.
      ended "${hosts[${started[$process]}]}" "$code"
      unset "started[$process]"
    fi
  done
}

main() {
  (($# > 1)) || refuse 'usage: launch/multihost.sh HOSTFILE COMMAND [ARGUMENT...]'
  DIR=${DIR:-$PWD} PORT=${PORT:-9876} GRACE=${GRACE:-60}
  interrupted='' codes=() started=()
  read_hosts "$1"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  mkfifo "$scratch/open"
  exec {open}<>"$scratch/open"
  trap 'interrupted=yes; say "stopping all"; stop' INT
  trap stop TERM HUP
  local number
  for number in "${!hosts[@]}"; do start "$number" "${@:2}"; done
  wait_for_all
  [[ -z $interrupted ]] || exit 130
  exit "$(worst "${codes[@]}")"
}

main "$@"
