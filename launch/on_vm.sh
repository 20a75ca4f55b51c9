#!/usr/bin/env bash
# What tpu_vm.sh has each worker do: setup | start FLAG... | status | logs | stop.
#
# ~/kdih.tar.gz becomes ~/kdih (the code), and ~/kdih_env (its environment); ~/kdih_run holds the
# log, the exit code, and a lock which is held for as long as a run goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"
readonly PYTHON=3.12 RUN=$HOME/kdih_run

is_free() {
  flock --nonblock "$RUN/lock" true
}

# Replaces the files of the last archive; what a run wrote between them stays.
unpack() {
  if [[ -f $RUN/files ]]; then (cd ~/kdih && xargs -d '\n' rm -f -- <"$RUN/files"); fi
  tar -xzf ~/kdih.tar.gz -C ~/kdih
  tar -tzf ~/kdih.tar.gz >"$RUN/files"
}

# uv brings a Python where the image's is too old, and needs neither pip, apt nor root.
install() {
  export PATH=$HOME/.local/bin:$PATH
  if ! command -v uv >/dev/null; then
    curl -LsSf --retry 5 https://astral.sh/uv/install.sh | sh || return 1
  fi
  uv venv --quiet --allow-existing --python "$PYTHON" ~/kdih_env || return 1
  uv pip install --quiet --python ~/kdih_env/bin/python --editable "$HOME/kdih[tpu]" || return 1
}

setup() {
  is_free || refuse "$HOSTNAME: a run is going on; stop it first"
  unpack
  install
}

# Starts a run that outlives the connection.
start() {
  exec 9>>"$RUN/lock"
  flock --nonblock 9 || refuse "$HOSTNAME: a run is going on; stop it first"
  rm -f "$RUN/code"
  cd ~/kdih
  nohup setsid bash launch/on_vm.sh keep "$@" >>"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/process"
}

# The run itself, which leaves its exit code.
keep() {
  local code=0
  trap : TERM  # A machine that shuts down sends it to all; the run saves first.
  ~/kdih_env/bin/python -m kdih.main "$@" || code=$?
  echo "$code" >"$RUN/code"
}

status() {
  if ! is_free; then
    echo running
  elif [[ -s $RUN/code ]]; then
    echo "ended $(<"$RUN/code")"
  elif [[ -f $RUN/process ]]; then
    echo 'ended 75'  # The machine was taken away before the run could say so.
  else
    echo idle
  fi
}

logs() {
  [[ -f $RUN/process ]] || refuse 'no run was started here'
  exec tail -n +1 -F -s 0.2 --pid="$(<"$RUN/process")" "$RUN/log"
}

stop() {
  if is_free; then return; fi
  kill -TERM -- "-$(<"$RUN/process")"
  flock --timeout 60 "$RUN/lock" true || kill -KILL -- "-$(<"$RUN/process")"
  if [[ ! $(cat "$RUN/code") =~ ^[012]$ ]]; then echo 75 >"$RUN/code"; fi
}

main() {
  case ${1:-} in
    setup | start | keep | status | logs | stop) ;;
    *) refuse "unknown: ${1:-}" ;;
  esac
  mkdir -p "$RUN"
  "$@"
}

main "$@"
