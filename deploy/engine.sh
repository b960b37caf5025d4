# Which engine builds and runs the containers here; sourced by build.sh and smoke.sh. After it:
#
#   engine       docker or podman
#   compose ...  docker compose, or podman-compose
#   CAPS_BASE_IMAGES  a command that makes the base images where no registry can be reached; it is run
#                once when they are not there

if docker info >/dev/null 2>&1; then
    engine=docker
    compose() { docker compose "$@"; }
elif command -v podman >/dev/null && command -v podman-compose >/dev/null; then
    engine=podman
    compose() { podman-compose "$@"; }
elif [ -n "${CAPS_BASE_IMAGES:-}" ]; then
    engine=podman # comes with the base images
    compose() { podman-compose "$@"; }
else
    echo "neither a Docker engine with its compose plugin nor podman with podman-compose is here" >&2
    exit 69
fi

base_images() {
    for image in docker.io/library/python:3.11-slim-bookworm docker.io/library/postgres:17; do
        if ! "$engine" image inspect "$image" >/dev/null 2>&1; then
            [ -z "${CAPS_BASE_IMAGES:-}" ] && continue # they are pulled
            echo "making the base images: $CAPS_BASE_IMAGES"
            $CAPS_BASE_IMAGES >/dev/null
            break
        fi
    done
    if [ "$engine" = podman ] && ! command -v iptables >/dev/null; then
        if [ -z "${CAPS_BASE_IMAGES:-}" ]; then
            echo "podman makes its networks with iptables, which is not installed" >&2
            exit 69
        fi
        apt-get install -y -q iptables >/dev/null
    fi
}
