#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each worker: setup | start FLAG... | status | logs | stop.
#
# `setup` unpacks ~/kdih.tar.gz to ~/kdih and installs it in the environment ~/kdih_env. ~/kdih_run
# holds the log, the exit code, and a lock that is held while a run is in progress.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"
readonly PYTHON=3.12 RUN=$HOME/kdih_run

is_free() {
  flock --nonblock "$RUN/lock" true
}

# Replaces the files of the last archive and keeps the files that a run wrote.
unpack() {
  if [[ -f $RUN/files ]]; then (cd ~/kdih && xargs -d '\n' rm -f -- <"$RUN/files"); fi
  tar -xzf ~/kdih.tar.gz -C ~/kdih
  tar -tzf ~/kdih.tar.gz >"$RUN/files"
}

# uv installs a newer Python if the image's is too old, and needs neither pip, apt nor root.
install() {
  export PATH=$HOME/.local/bin:$PATH
  if ! command -v uv >/dev/null; then
    curl -LsSf --retry 5 https://astral.sh/uv/install.sh | sh || return 1
  fi
  uv venv --quiet --allow-existing --python "$PYTHON" ~/kdih_env || return 1
  uv pip install --quiet --python ~/kdih_env/bin/python --editable "$HOME/kdih[tpu]" || return 1
}

setup() {
  is_free || refuse "$HOSTNAME: a run is in progress; stop it first"
  unpack
  install
}

# Starts a run that continues when the connection ends.
start() {
  exec 9>>"$RUN/lock"
  flock --nonblock 9 || refuse "$HOSTNAME: a run is in progress; stop it first"
  rm -f "$RUN/code"
  cd ~/kdih
  nohup setsid bash launch/on_vm.sh keep "$@" >>"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/process"
}

# Runs kdih and writes its exit code to a file.
keep() {
  local code=0
  trap : TERM  # At shutdown all processes get SIGTERM; this one waits until the run has saved.
  ~/kdih_env/bin/python -m kdih.main "$@" || code=$?
  echo "$code" >"$RUN/code"
}

status() {
  if ! is_free; then
    echo running
  elif [[ -s $RUN/code ]]; then
    echo "ended $(<"$RUN/code")"
  elif [[ -f $RUN/process ]]; then
    echo 'ended 75'  # The machine was taken away before the run could write its exit code.
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
    *) refuse "unknown command: ${1:-}" ;;
  esac
  mkdir -p "$RUN"
  "$@"
}

main "$@"
