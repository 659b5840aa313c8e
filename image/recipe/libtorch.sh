#!/bin/bash
# Makes a CPU-only libtorch out of PyPI's torch wheel: headers, three libraries of the wheel, stubs for the rest.
#
# PyPI's x86-64 wheel is the CUDA build, whose libtorch_cpu.so is linked to two CUDA libraries that nobody without
# a GPU has. The stubs in their place answer "no CUDA device". Runs in the builder root for release images, and
# on the machine itself for development (scripts/libtorch).
#
# usage: libtorch.sh WHEEL FOLDER [strip]
#   FOLDER   is made; gets include/ and lib/
#   strip    remove the symbols that linking does not need: 435 MB become 345
set -euo pipefail
wheel=$1 folder=$2 strip=${3:-}

fail() {
    printf 'libtorch.sh: %s\n' "$1" >&2
    exit 1
}

python3 -I - "$wheel" "$folder" <<'END' || fail "could not extract $wheel"
import pathlib, shutil, sys, zipfile

LIBRARIES = {f"torch/lib/{name}" for name in ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")}
wheel, folder = zipfile.ZipFile(sys.argv[1]), pathlib.Path(sys.argv[2])
for entry in wheel.infolist():
    name = entry.filename
    if entry.is_dir() or not (name in LIBRARIES or name.startswith("torch/include/")):
        continue
    path = folder / name.removeprefix("torch/")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(entry) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if name in LIBRARIES:
        path.chmod(0o755)
missing = [name for name in LIBRARIES if not (folder / name.removeprefix("torch/")).exists()]
sys.exit(f"not in the wheel: {missing}" if missing else 0)
END

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A library with each function that libtorch_cpu.so takes from it, under the same symbol version. Each answers
# with an error code: libtorch asks once whether there is a device and then leaves CUDA alone.
stub() {
    local soname=$1 code=$2 symbol
    nm -D --undefined-only "$folder/lib/libtorch_cpu.so" |
        sed -n "s/^ *U \([A-Za-z0-9_]*\)@$soname\$/\1/p" | LC_ALL=C sort >"$work/symbols"
    [[ -s $work/symbols ]] || fail "libtorch_cpu.so takes nothing from $soname: the wheel is not the expected one"
    while read -r symbol; do
        case $symbol in
            cudaGetErrorString)
                echo "const char *$symbol(int code) { (void)code; return \"no CUDA in this build\"; }" ;;
            cudaGetDeviceCount | cudaDriverGetVersion | cudaRuntimeGetVersion)
                echo "int $symbol(int *value) { if (value) *value = 0; return $code; }" ;;
            *) echo "int $symbol(void) { return $code; }" ;;
        esac
    done <"$work/symbols" >"$work/stub.c"
    echo "$soname { global: *; };" >"$work/stub.map"
    link "$soname" -Wl,--version-script="$work/stub.map"
}

link() {
    local soname=$1
    shift
    # A relative name, so that the folder does not get into the library.
    (cd "$work" && gcc -O2 -s -shared -fPIC -w -o "$soname" stub.c -Wl,-soname,"$soname" \
        -Wl,--build-id=none "$@") || fail "gcc could not make the stub $soname"
    install -m 755 "$work/$soname" "$folder/lib/$soname"
}

stub libcudart.so.13 100 # cudaErrorNoDevice
stub libcupti.so.13 15   # CUPTI_ERROR_NOT_INITIALIZED
# torch-sys links to libtorch.so, which in PyTorch's CPU builds only leads to the other two.
echo 'void cocoon_libtorch_cpu(void) {}' >"$work/stub.c"
libraries=$(cd "$folder/lib" && pwd)
# shellcheck disable=SC2016 # $ORIGIN is for the dynamic linker
link libtorch.so -L"$libraries" -Wl,--no-as-needed -l:libtorch_cpu.so -l:libc10.so \
    -Wl,-rpath-link,"$libraries" -Wl,-rpath,'$ORIGIN'

[[ -z $strip ]] || strip --strip-unneeded "$folder"/lib/{libtorch_cpu.so,libc10.so,libgomp.so.1}
