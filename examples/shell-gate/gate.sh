#!/bin/sh
# An interceptor in shell and jq: while the file named by `sign` exists, every request is refused with 503 and with the
# file's first line; otherwise the upstream is told since when this gate has been open.
#
# It offers no features, so it gets one call at a time and nothing else (the minimal profile). jq reads the frames and
# hands over one short line for each: `read` of a shell takes a system call per byte, which is nothing for large bodies.
set -u
hello='{"kind":"hello","abi":[1],"schema":1,"plugin":"shell-gate","version":"1.0.0",
"capabilities":["plugin.register","request.intercept_before"],"inputs":{"request.intercept_before":[]}}'
hello=$(printf %s "$hello" | tr -d '\n')
if [ "${1:-}" = --describe ]; then
    echo "$hello"
    exit 0
elif [ -t 0 ]; then
    echo "shell-gate is a plugin of the Jackfield gateway, which starts it itself; try --describe." >&2
    exit 64
fi

tab=$(printf '\t')
since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
sign=closed

answer() { # ID RESULT
    printf '{"kind":"result","id":%s,"ok":true,"result":%s}\n' "$1" "$2"
}

intercept() { # ID
    if [ -e "$sign" ]; then
        answer "$1" "$(head -n 1 "$sign" | jq -Rsc '{terminate: {
            status: 503, headers: {"retry-after": ["60"]},
            body: {json: {error: {message: ("closed: " + rtrimstr("\n")), type: "maintenance"}}}}}')"
    else
        answer "$1" "{\"headers\":{\"x-gate-open-since\":[\"$since\"]}}"
    fi
}

jq --unbuffered -r '[.kind, .id // 0, .method // "-", (.params.config.sign? // "closed" | tostring)] | join("\t")' |
    while IFS=$tab read -r kind id method configured; do
        case "$kind $method" in
        "hello -") echo "$hello" ;;
        "call plugin.register") sign=$configured && answer "$id" '{}' ;;
        "call request.intercept_before") intercept "$id" ;;
        "call "*) printf '{"kind":"result","id":%s,"ok":false,"error":{"message":"no %s","code":"method_not_found"}}\n' \
            "$id" "$method" ;;
        esac
    done
