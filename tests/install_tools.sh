#!/bin/sh
# Tools beside Python that some tests run: jq, Node, Go, Rust and C for the plugins written without our SDK.
# Installs them with apt-get where that is possible; otherwise says what is missing, and fails in CI.
set -u
missing=""
command -v jq >/dev/null 2>&1 || missing="$missing jq"
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v make >/dev/null 2>&1 || missing="$missing make"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -e /usr/include/jansson.h ] || missing="$missing libjansson-dev"
command -v go >/dev/null 2>&1 || missing="$missing golang-go"
command -v cargo >/dev/null 2>&1 || missing="$missing cargo rustc"
# The sources of serde_json, so that cargo needs no network.
[ -e /usr/share/doc/librust-serde-json-dev ] || missing="$missing librust-serde-json-dev"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >/dev/null && exit 0
fi
echo "MISSING TOOLS:$missing - the tests that need them are skipped; install them to run everything" >&2
[ "${CI:-}" = "true" ] && exit 1
exit 0
