# shellcheck shell=bash
# Sourced by the server scripts beside it.

# Ends the caller's whole process group as soon as stdin ends: whoever started the server is gone, however it died. The
# group must be the server's own. To be called before the server is exec'ed.
end_with_stdin() {
  exec 3<&0 </dev/null
  (
    cat <&3 >/dev/null || true
    kill -KILL 0
  ) &
  exec 3<&-
}
