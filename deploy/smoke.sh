#!/usr/bin/env bash
# Tries the whole service in containers, as a user would: builds the images, brings
# docker-compose.yml up as it is, submits a training and a search through the published port, waits,
# looks into MLflow, and takes everything down. Prints sizes and times.
#
#   deploy/smoke.sh             with Docker, or with podman and podman-compose
#   KEEP=1 deploy/smoke.sh      leaves it up
#
# Its containers and volumes are called capsnet-smoke-..., so a deployment that is up is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/engine.sh

project=capsnet-smoke-$$
version=${CAPS_VERSION:-0.1.0}
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
export CAPS_API_PORT=${CAPS_API_PORT:-$(free_port)} CAPS_MLFLOW_PORT=${CAPS_MLFLOW_PORT:-$(free_port)}
export CAPS_MLFLOW_PUBLIC_URL=http://127.0.0.1:$CAPS_MLFLOW_PORT

since() { echo $(($(date +%s) - $1)); }
megabytes() { "$engine" image inspect --format '{{.Size}}' "$1" | awk '{printf "%d", $1 / 1000000}'; }

take_down() {
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "FAILED; the last lines of each container:" >&2
        for id in $("$engine" ps --all --quiet --filter "name=$project"); do
            "$engine" inspect --format '--- {{.Name}} {{.State.Status}}' "$id" >&2
            "$engine" logs --tail 15 "$id" >&2 || true
        done
    fi
    if [ "${KEEP:-}" != 1 ]; then
        compose -p "$project" down --volumes >/dev/null 2>&1 || true
    fi
    exit "$status"
}
trap take_down EXIT

began=$(date +%s)
deploy/build.sh
echo "built in $(since "$began") s"
base=$(megabytes docker.io/library/python:3.11-slim-bookworm)
for stage in service mlflow worker; do
    size=$(megabytes "capsnet-$stage:$version")
    echo "capsnet-$stage: $size MB, $((size - base)) MB above its base"
done
service=$(($(megabytes "capsnet-service:$version") - base))
[ "$service" -lt 400 ] || { echo "the service's image is $service MB above its base" >&2; exit 1; }

began=$(date +%s)
compose -p "$project" up --detach --no-build >/dev/null 2>&1
CAPS_API=http://127.0.0.1:$CAPS_API_PORT CAPS_MLFLOW=$CAPS_MLFLOW_PUBLIC_URL \
    python3 deploy/smoke_checks.py ready
echo "up and ready after $(since "$began") s"

api=$("$engine" ps --quiet --filter "name=${project}.api" | head -n 1)
CAPS_TOKEN=$("$engine" exec "$api" capsctl token create --name smoke --owner smoke --scope submit)
export CAPS_TOKEN
began=$(date +%s)
CAPS_API=http://127.0.0.1:$CAPS_API_PORT CAPS_MLFLOW=$CAPS_MLFLOW_PUBLIC_URL \
    python3 deploy/smoke_checks.py jobs
echo "jobs checked after $(since "$began") s"

if [ "${KEEP:-}" = 1 ]; then
    echo "left up: API http://127.0.0.1:$CAPS_API_PORT, MLflow $CAPS_MLFLOW_PUBLIC_URL"
    exit 0
fi
began=$(date +%s)
compose -p "$project" down --volumes >/dev/null 2>&1
left=$("$engine" ps --all --quiet --filter "name=$project"; "$engine" volume ls --quiet --filter "name=$project")
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
echo "taken down in $(since "$began") s"
echo "passed"
