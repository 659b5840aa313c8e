#!/bin/bash
# Takes CUDA's libraries out of NVIDIA's wheels, and the half of libtorch that calls them out of PyTorch's.
#
# The wheels have the names that image.lock gives them. Which of these libraries get into a root is decided by what its
# programs need. Runs in the builder root.
#
# usage: cuda.sh WHEELS FOLDER
#   WHEELS   the folder with the wheels
#   FOLDER   is made; gets lib/
set -euo pipefail
wheels=$1 folder=$2

python3 -I - "$wheels" "$folder" <<'END'
import pathlib, re, shutil, sys, zipfile

TORCH = {f"torch/lib/{name}" for name in ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_nvshmem.so")}
NVIDIA = re.compile(r"nvidia/[^/]+/lib/(lib[^/]+\.so[.0-9]*)")
library = pathlib.Path(sys.argv[2], "lib")
library.mkdir(parents=True)
missing = set(TORCH)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if not zipfile.is_zipfile(path):
        continue  # the script itself
    wheel = zipfile.ZipFile(path)
    names = [name for name in wheel.namelist() if name in TORCH or NVIDIA.fullmatch(name)]
    if not names:
        sys.exit(f"cuda.sh: no library is in the wheel {path.name}")
    missing -= set(names)
    for name in names:
        target = library / pathlib.PurePosixPath(name).name
        if target.exists():
            sys.exit(f"cuda.sh: {target.name} is in two wheels; which one is meant?")
        with wheel.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        target.chmod(0o755)
sys.exit(f"cuda.sh: in no wheel: {', '.join(sorted(missing))}" if missing else 0)
END
strip --strip-unneeded "$folder"/lib/{libtorch_cuda.so,libc10_cuda.so,libtorch_nvshmem.so}
