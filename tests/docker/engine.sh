# shellcheck shell=bash
# A Docker engine to test with, and images to start from; `run.sh` reads this file.
#
# Where an engine answers, it is used. Where none does, one is started from Debian's docker.io package (as root), with its
# data, socket and process id in a folder of its own. Where no image registry can be reached, debootstrap makes the base
# image. What cannot be had ends the run with status 77: that is the machine's doing, not the project's.
export DOCKER_BUILDKIT=1

no_engine() {
    local line="******************************************************************************"
    printf '%s\n' "" "$line" "** THE DOCKER TESTS DID NOT RUN: $1" \
        "** docker-compose.yml was not started and nothing about it was proven here." "$line" >&2
    exit 77
}

say() { printf '\n== %s\n' "$*"; }

# What a step of the machine's said, when it failed; its last lines only.
quietly() { # log, command…
    local log=$1
    shift
    "$@" >>"$log" 2>&1 </dev/null || { tail -n 15 "$log" >&2; return 1; }
}

install_engine() {
    [ "$(id -u)" = 0 ] || no_engine "no Docker engine answers, and starting one needs root"
    command -v apt-get >/dev/null || no_engine "no Docker engine answers, and Debian's docker.io package cannot be installed"
    local missing=()
    for package in docker.io docker-compose debootstrap; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # RUNLEVEL=1: installing starts no service, because the tests' engine is their own.
    quietly "$logs/apt.log" apt-get update -qq \
        && RUNLEVEL=1 quietly "$logs/apt.log" apt-get install -qq -y --no-install-recommends "${missing[@]}" \
        || no_engine "Debian's packages ${missing[*]} cannot be installed"
}

# The engine leaves the machine's firewall and forwarding as they are: builds use the host's network, containers a bridge
# without a way out, and published ports a proxy process. It ends with this script, however that ends, and lets others
# have the processors first.
start_engine() {
    engine_root=${DOCKER_TEST_ROOT:-$(mktemp -d /var/tmp/hiera-docker.XXXXXX)}
    mkdir -p "$engine_root"
    export DOCKER_HOST=unix://$engine_root/docker.sock
    say "starting a Docker engine in $engine_root"
    setpriv --pdeathsig TERM nice -n 5 \
        dockerd --iptables=false --ip-forward=false --bridge=none --data-root "$engine_root/data" \
        --exec-root "$engine_root/exec" --pidfile "$engine_root/dockerd.pid" -H "$DOCKER_HOST" \
        >"$engine_root/dockerd.log" 2>&1 </dev/null &
    engine_pid=$!
    for _ in $(seq 60); do
        "$DOCKER" info >/dev/null 2>&1 && return
        kill -0 "$engine_pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 20 "$engine_root/dockerd.log" >&2
    no_engine "dockerd does not start (its last lines stand above)"
}

stop_engine() {
    [ -n "${engine_pid:-}" ] || return 0
    kill "$engine_pid" 2>/dev/null || true
    wait "$engine_pid" 2>/dev/null || true
    # What an engine that was killed leaves mounted.
    local mounted
    for mounted in $(awk -v root="$engine_root/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort -r); do
        umount --lazy "$mounted" || true
    done
    [ -n "${DOCKER_TEST_ROOT:-}" ] || rm -rf "$engine_root"
}

# The first client that builds with BuildKit: a client without its buildx plugin may stand before one that needs none.
find_client() {
    local candidate
    for candidate in docker /usr/bin/docker; do
        if "$candidate" build --help 2>/dev/null | grep -q -- --secret; then
            DOCKER=$candidate
            return
        fi
    done
    return 1
}

compose() {
    if "$DOCKER" compose version >/dev/null 2>&1; then "$DOCKER" compose "$@"; else docker-compose "$@"; fi
}

pull() {
    "$DOCKER" image inspect "$1" >/dev/null 2>&1 || timeout 120 "$DOCKER" pull --quiet "$1" >/dev/null 2>&1
}

make_base_image() {
    # In an engine that belongs to somebody, the stand-in must not pass for the real one.
    [ -n "${engine_pid:-}" ] || BASE_IMAGE=hiera-test/base
    say "no registry has the base image for us: making a stand-in, $BASE_IMAGE, with debootstrap"
    command -v debootstrap >/dev/null || no_engine "there is no debootstrap to make a base image with"
    base_root=$(mktemp -d /var/tmp/hiera-base.XXXXXX)
    quietly "$logs/debootstrap.log" debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip \
        bookworm "$base_root" || no_engine "debootstrap cannot make a base image"
    rm -rf "$base_root"/var/cache/apt/archives/*.deb "$base_root"/var/lib/apt/lists/* "$base_root"/usr/share/{doc,man,locale}/*
    tar -C "$base_root" -c . | "$DOCKER" import --change 'CMD ["python3"]' - "$BASE_IMAGE" >/dev/null
    rm -rf "$base_root"
}

# What a build needs to reach this machine's package index: its certificates and pip's own settings, as secrets.
find_index_secrets() {
    index_secrets=()
    local certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
    [ -s "$certificates" ] && index_secrets+=(--secret "id=ca,src=$certificates")
    { echo '[global]'; "$PYTHON" -m pip config list | sed -n -E \
        "s/^(global|install|:env:)\.(index-url|extra-index-url|trusted-host|proxy|timeout|default-timeout)='([^']*)'$/\2 = \3/p" \
        | grep -v file: || true; } >"$logs/pip.conf"
    index_secrets+=(--secret "id=pip,src=$logs/pip.conf")
}

# A container runs, and a build fetches a package; what fails later than this is the project's fault.
prove_engine() {
    "$DOCKER" run --rm --network none "$BASE_IMAGE" python3 -c 'pass' >"$logs/run.log" 2>&1 \
        || { tail -n 5 "$logs/run.log" >&2; no_engine "the engine runs no container"; }
    quietly "$logs/index.log" "$DOCKER" build --progress=plain --network=host --no-cache --build-arg BASE_IMAGE \
        --tag hiera-test/index "${index_secrets[@]}" --file tests/docker/index.Dockerfile docker \
        || no_engine "no package can be fetched from inside a build"
}
