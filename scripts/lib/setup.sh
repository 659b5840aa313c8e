# Sourced by the scripts beside it: where things are, what has to be installed, and how progress is shown.
# Nothing here is Cocoon's own work; it only brings a Debian machine to where `cargo build` succeeds.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export COCOON_CACHE=${COCOON_CACHE:-$HOME/.cache/cocoon}
export LIBTORCH=${LIBTORCH:-$COCOON_CACHE/libtorch-2.11.0}
export PATH=$COCOON_CACHE/tools/bin:$PATH
OUT=${COCOON_OUT:-$REPOSITORY/out}
BIN=${CARGO_TARGET_DIR:-$REPOSITORY/target}/debug

# Debian packages, each with the program or file that shows it is there.
PACKAGES=(
    "qemu-system-x86 qemu-system-x86_64" "ovmf /usr/share/ovmf/OVMF.fd"
    "gcc gcc" "g++ g++" "make make" "flex flex" "bison bison" "bc bc" "patch patch" "xz-utils xz" "lz4 lz4"
    "libelf-dev /usr/include/libelf.h" "libssl-dev /usr/include/openssl/ssl.h"
    "binutils strip" "cmake cmake" "python3 python3" "python3-pip pip3"
)
TEST_PACKAGES=("erofs-utils fsck.erofs" "cryptsetup-bin veritysetup" "nodejs node" "npm npm" "swtpm swtpm"
    "python3-venv /usr/lib/python3*/ensurepip" "curl curl" "chromium chromium" "openssl openssl" "acpica-tools iasl"
    "zstd zstd")

fail() { # what was attempted, why it failed, what to do
    printf '\n%s\n  why:  %s\n  fix:  %s\n' "$1" "$2" "$3" >&2
    exit "${4:-3}"
}

STARTED_S=$SECONDS
stage() { # announces a stage with the time since the start
    printf '[%4ds] %s\n' $((SECONDS - STARTED_S)) "$1" >&2
}

is_there() { # a program on the PATH (sbin included), or a file
    case $1 in
        /*) [ -e "$1" ] ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 ;;
    esac
}

install_packages() { # each argument: "package program-or-file"
    local missing=() entry
    for entry in "$@"; do
        # shellcheck disable=SC2086
        set -- $entry
        is_there "$2" || missing+=("$1")
    done
    [ ${#missing[@]} -eq 0 ] && return
    stage "installing ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "installing ${missing[*]}" "neither root nor sudo" \
            "run as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null || fail "installing ${missing[*]}" "this system has no apt-get" \
        "install the equivalents of these Debian packages: ${missing[*]}"
    mkdir -p "$COCOON_CACHE"
    local log=$COCOON_CACHE/apt.log
    { "${as_root[@]}" apt-get update && DEBIAN_FRONTEND=noninteractive \
        "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
        fail "installing ${missing[*]}" "$(tail -n 3 "$log")" "read $log, then install the packages by hand"
}

require_rust() {
    [ "$(uname -m)" = x86_64 ] || fail "checking the machine" "this is $(uname -m)" "use an x86-64 machine"
    command -v cargo >/dev/null || [ ! -e "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null || fail "looking for Rust" "cargo is not on the PATH" \
        "install it with rustup (https://rustup.rs), then run this again"
}

require_space() { # GiB, folder
    mkdir -p "$2"
    local free_gib=$(($(df --output=avail -k "$2" | tail -n 1) / 1048576))
    [ "$free_gib" -ge "$1" ] || fail "checking free space" "$free_gib GiB are free at $2, $1 are needed" \
        "free some, or point COCOON_CACHE and CARGO_TARGET_DIR elsewhere"
}

install_tool() { # a program from crates.io, at one version, into the cache: crate, version, program
    is_there "$3" && return
    stage "building $1 $2"
    local log=$COCOON_CACHE/$1.log
    cargo install --locked --quiet --version "$2" --root "$COCOON_CACHE/tools" "$1" >"$log" 2>&1 </dev/null ||
        fail "building $1" "$(tail -n 3 "$log")" "read $log"
}

install_clients() { # programs of others that speak OpenAI's API, at one version each, into the cache
    export COCOON_E2E_CLIENTS=$COCOON_CACHE/clients
    local python=$COCOON_E2E_CLIENTS/python node=$COCOON_E2E_CLIENTS/node log=$COCOON_CACHE/clients.log
    local wanted="openai-python 3.52.0, llm-comply 0.5.0, openai-node 7.55.0"
    [ "$(cat "$COCOON_E2E_CLIENTS/installed" 2>/dev/null)" != "$wanted" ] || return 0
    stage "installing $wanted"
    rm -rf "$COCOON_E2E_CLIENTS"
    mkdir -p "$node"
    { python3 -m venv "$python" && "$python/bin/pip" install --quiet openai==3.52.0 llm-comply==0.5.0 &&
        npm install --silent --no-audit --no-fund --prefix "$node" openai@7.55.0; } >"$log" 2>&1 </dev/null ||
        fail "installing $wanted" "$(tail -n 3 "$log")" "read $log"
    printf '%s\n' "$wanted" >"$COCOON_E2E_CLIENTS/installed"
}

other_clock() { # makes the library whose preloading gives programs another clock: its path, without spaces
    gcc -O2 -shared -fPIC -o "$1" "$REPOSITORY/scripts/lib/other-clock.c"
}

prepare() { # everything that a build and a boot need
    require_rust
    require_space 12 "$COCOON_CACHE"
    install_packages "${PACKAGES[@]}"
    [ -e /dev/vhost-vsock ] || install_tool vhost-device-vsock 0.3.0 vhost-device-vsock
    "$REPOSITORY/scripts/libtorch" >/dev/null
}

cargo_quietly() { # a cargo command whose output is shown only if it fails
    local log=$COCOON_CACHE/cargo.log
    (cd "$REPOSITORY" && cargo "$@") >"$log" 2>&1 </dev/null ||
        { tail -n 40 "$log" >&2; fail "cargo $1" "the lines above" "the whole output is in $log"; }
}

build_programs() {
    stage "building the host's programs"
    cargo_quietly build -p cocoon-image -p cocoon-measurements -p cocoon-launch -p cocoon --bins
}

build_image() { # the dev image and the demo model's volume
    stage "building the guest image"
    "$BIN/cocoon-image" build --profile dev --out "$OUT/dev" --cache "$COCOON_CACHE" >&2
    build_model
}

build_model() { # the demo model's volume
    mkdir -p "$OUT/model"
    "$BIN/cocoon-image" model pack "$REPOSITORY/agent/engine/demo-model" --name cocoon-demo \
        --out "$OUT/model/cocoon-demo.img" >&2
}
