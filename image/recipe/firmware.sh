#!/bin/bash
# Builds UEFI firmware from edk2's source. Runs in the builder root: /inputs holds the two source archives,
# /build is empty, JOBS says how many compilers may run at a time. The firmware depends on the path it is built at, which is why that is always /build/edk2.
#
# usage: firmware.sh PLATFORM
#   IntelTdx/IntelTdxX64  for TDX: starts without PEI, measures into RTMR0
#   AmdSev/AmdSevX64      for SEV-SNP: takes kernel and command line only with the hashes that were measured
#   OvmfPkgX64            for machines without either, with measurements into a TPM
set -euo pipefail
platform=$1

mkdir edk2
tar -xJf /inputs/edk2 -C edk2 --strip-components=1 --no-same-owner
cd edk2
tar -xJf /inputs/edk2-debian --no-same-owner
sed '/^#/d; /^$/d' debian/patches/series | while read -r patch; do
    patch --silent --strip=1 <"debian/patches/$patch"
done

# The AmdSev platform puts a GRUB into the firmware, built with the machine's own; a guest that is started with
# its kernel never runs it. An empty file takes its place.
sed -i /PREBUILD/d OvmfPkg/AmdSev/AmdSevX64.dsc
: >OvmfPkg/AmdSev/Grub/grub.efi

# Firmware starts the kernel that QEMU hands it. It reads no disk, no file system, no USB device and no keyboard of the
# host's, draws nothing, and runs no byte code of a device's: docs/decisions/0013-firmware-without-drivers.md.
drivers='OvmfPkg/(QemuRamfb|QemuVideo|Virtio(Blk|Fs|Gpu|Net|Scsi))Dxe'
drivers+='|MdeModulePkg/Bus/(Ata|Scsi|Usb|Isa/Ps2KeyboardDxe|Pci/([EUX]hci|NvmExpress|SataController)Dxe)'
drivers+='|MdeModulePkg/Universal/(EbcDxe|Disk/(DiskIo|Partition|RamDisk|Udf)Dxe)|FatPkg'
sed -E -i "\\#^ *(INF +)?($drivers)/#d" "OvmfPkg/$platform".{dsc,fdf}
left='/(Ata|DiskIo|Ebc|Fat|Nvm|Partition|Ps2|QemuRamfb|QemuVideo|RamDisk|Sata|Scsi|Udf|Usb|Virtio(Blk|Fs|Gpu|Net|Scsi)|[EUX]hci)'
if grep -E "$left[A-Za-z]*\.inf" "OvmfPkg/$platform.fdf"; then
    echo "edk2 has these drivers in other places now: drivers= has to name them" >&2
    exit 1
fi

# Firmware hashes and knows no other cryptography. Of the rest, some 640 files, the linker keeps nothing, so leaving it
# uncompiled changes no byte; where something came to use it, the linker would fail.
hashes='OpensslLibConstructor|crypto/(cpuid|mem_clr|sha/sha(1dgst|256|512)|sm3/(legacy_)?sm3)'
hashes+='|Hash/Crypt(Sha(1|256|512)|Sm3)|SysCall/.*'
for library in OpensslLib/OpensslLibCrypto BaseCryptLib/{Base,Pei}CryptLib; do
    sed -E -i "/^\\[Sources/,/^\\[Packages/{/\\.c\\r?\$/{\\#($hashes)\\.c#!d}}" "CryptoPkg/Library/$library.inf"
done

export PYTHON_COMMAND=python3 PYTHONDONTWRITEBYTECODE=1 WORKSPACE=$PWD EDK_TOOLS_PATH=$PWD/BaseTools
# Compiling these tools optimised takes longer than what they then do.
make --silent --jobs="$JOBS" -C BaseTools/Source/C EXTRA_OPTFLAGS=-O0
export PATH=$EDK_TOOLS_PATH/BinWrappers/PosixLike:$PATH
set +u # edksetup.sh reads variables that are not set
. ./edksetup.sh BaseTools
set -u
# Secure Boot stays off: what is booted is decided by whoever reads the measurement, not by somebody's keys. No
# shell, which is TDX firmware's default: a host that gives it no kernel would get one on the serial line. No network,
# which only OvmfPkgX64 has. No TPM in an SEV-SNP guest: it would be the host's. (edk2's platform for TDX knows none.)
tpm=FALSE
[ "$platform" != OvmfPkgX64 ] || tpm=TRUE
build -q -a X64 -t GCC5 -b RELEASE -n "$JOBS" -p "OvmfPkg/$platform.dsc" -D "TPM2_ENABLE=$tpm" \
    -D BUILD_SHELL=FALSE -D NETWORK_ENABLE=FALSE
cp Build/*/RELEASE_GCC5/FV/OVMF.fd /build/firmware.fd
