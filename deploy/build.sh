#!/usr/bin/env bash
# Builds the project's images: deploy/build.sh [STAGE...], all of them by default.
#
# With a Docker engine that is `docker compose build`. With podman each stage is built by buildah,
# which needs no daemon and few rights; where pip is told of a folder of wheels (find-links), the
# build is told of it, too, and takes PyTorch from there or from the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/engine.sh

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(service mlflow worker postgres)
version=${CAPS_VERSION:-0.1.0}
revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)

base_images
if [ "$engine" = docker ]; then
    for stage in "${stages[@]}"; do
        docker build --file deploy/Dockerfile --target "$stage" \
            --label "org.opencontainers.image.revision=$revision" --tag "capsnet-$stage:$version" .
    done
    exit
fi

flags=(--isolation chroot --network host --layers --format docker)
# By default a build asks for higher limits than an unprivileged machine may grant.
flags+=(--ulimit nofile=8192:8192 --ulimit nproc=16384:16384)
wheels=$(pip config get global.find-links 2>/dev/null || true)
if [ -d "$wheels" ]; then
    flags+=(--volume "$wheels:/wheels:ro" --env PIP_FIND_LINKS=/wheels --build-arg TORCH_INDEX=)
fi
for stage in "${stages[@]}"; do
    log=$(mktemp)
    buildah bud "${flags[@]}" --file deploy/Dockerfile --target "$stage" \
        --tag "capsnet-$stage:$version" . >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
    # By itself: buildah takes an unchanged stage from its cache, whatever the label.
    echo "FROM capsnet-$stage:$version" | buildah bud --isolation chroot --format docker --file - \
        --label "org.opencontainers.image.revision=$revision" --tag "capsnet-$stage:$version" \
        deploy/container >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
    rm "$log"
done
