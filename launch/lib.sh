# shellcheck shell=bash
# What the launch scripts share; they source it.

say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# One line for what the user can mend, and exit code 2.
refuse() {
  say "$@"
  exit 2
}

# need SETTING EXAMPLE: refuses where the environment variable is not set.
need() {
  [[ -n ${!1:-} ]] || refuse "$1: is not set; such as $1=$2"
}

# The arguments as one line, which any POSIX shell reads back as they were.
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

# The exit code that tells most of those of several processes: 1 and 2 cannot be mended by another
# try, 75 means that one was asked to stop, 0 that one is done.
worst() {
  local code worst=0
  for code; do
    if (($(rank "$code") > $(rank "$worst"))); then worst=$code; fi
  done
  echo "$worst"
}
