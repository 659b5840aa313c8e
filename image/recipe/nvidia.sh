#!/bin/bash
# Takes what a guest needs out of NVIDIA's driver, and compiles the driver's modules for the guest's kernel. Runs in the
# builder root for release images; JOBS says how many compilers may run at a time.
#
# The driver is a shell program with a compressed tar archive behind it. Nothing of it is run but its makefiles. They
# compile what NVIDIA publishes as source and link it with the one part that NVIDIA compiled itself.
#
# usage: nvidia.sh DRIVER VERSION KERNEL FOLDER
#   DRIVER    NVIDIA-Linux-x86_64-VERSION.run
#   KERNEL    what the kernel's build leaves for modules
#   FOLDER    is made; gets nvidia.ko, nvidia-uvm.ko, gsp_ga10x.bin and lib/
set -euo pipefail
driver=$1 version=$2 kernel=$3 folder=$4

fail() {
    printf 'nvidia.sh: %s\n' "$1" >&2
    exit 1
}

# Its second line or so says at which line the archive begins.
skip=$(head --bytes=1M "$driver" | sed -n 's/^skip=\([0-9][0-9]*\)$/\1/p')
[[ $skip =~ ^[0-9]{1,6}$ ]] || fail "$driver does not say where its archive begins; is it NVIDIA's driver?"
unpacked=$folder/unpacked
mkdir -p "$unpacked" "$folder/lib"
tail --lines="+$skip" "$driver" >"$folder/archive"
tar --extract --no-same-owner --file="$folder/archive" --directory="$unpacked" ||
    fail "$driver holds no archive that can be unpacked"
rm "$folder/archive"

# Other modules are for displays, and for networks between machines.
make --silent --jobs="${JOBS:-1}" -C "$unpacked/kernel-open" modules SYSSRC="$kernel" SYSOUT="$kernel" \
    NV_KERNEL_MODULES="nvidia nvidia-uvm" || fail "the modules were not compiled"
for module in nvidia nvidia-uvm; do
    strip --strip-debug -o "$folder/$module.ko" "$unpacked/kernel-open/$module.ko"
done
# Where the kernel lacks an option, this is compiled without the encrypted channel to the GPU, and nothing says so.
undefined=$(nm --undefined-only "$folder/nvidia.ko")
[[ $undefined == *" U crypto_alloc_aead"* ]] ||
    fail "nvidia.ko was compiled without confidential computing: the kernel lacks some cryptography"

# Of all processors on Hopper's and Blackwell's GPUs. The other firmware is for older ones.
install -m 644 "$unpacked/firmware/gsp_ga10x.bin" "$folder/"
# Under the names that programs open. libcuda opens the third, for what goes to a GPU in confidential mode.
install -m 755 "$unpacked/libcuda.so.$version" "$folder/lib/libcuda.so.1"
install -m 755 "$unpacked/libnvidia-ml.so.$version" "$folder/lib/libnvidia-ml.so.1"
install -m 755 "$unpacked/libnvidia-pkcs11-openssl3.so.$version" "$folder/lib/"
rm -r "$unpacked"
