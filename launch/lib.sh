# shellcheck shell=bash
# Functions that the launch scripts share; they source this file.

say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# Prints one line about what the user has to fix, and exits with code 2.
refuse() {
  say "$@"
  exit 2
}

# need SETTING EXAMPLE: refuses if the environment variable is not set.
need() {
  [[ -n ${!1:-} ]] || refuse "$1: is not set; set it, for instance $1=$2"
}

# Prints the arguments as one line that any POSIX shell splits into the same arguments.
quoted() {
  local argument line='' apostrophe="'\\''"
  for argument; do
    line+=" '${argument//\'/"$apostrophe"}'"
  done
  printf '%s' "${line# }"
}

rank() {
  case $1 in
    1) echo 4 ;;
    2) echo 3 ;;
    75) echo 1 ;;
    0) echo 0 ;;
    *) echo 2 ;;
  esac
}

# Prints the most severe of the exit codes of several processes: 1 and 2 mean that another try does
# not help, 75 that a process was asked to stop, 0 that it is done.
worst() {
  local code worst=0
  for code; do
    if (($(rank "$code") > $(rank "$worst"))); then worst=$code; fi
  done
  echo "$worst"
}
