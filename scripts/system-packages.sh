#!/usr/bin/env bash
# Makes sure that what the build needs from the operating system is there.
# Usage: system-packages.sh [build|test|lint|pip|fuzz|vulkan|package|web|mpi|slurm]...   (default: build)
# On Debian and Ubuntu missing packages are installed with apt-get when we are root or may use sudo; otherwise the
# list of what is missing is printed and the exit code is 1.
set -euo pipefail

declare -A header_of=(
  [libsqlite3-dev]=sqlite3.h [nlohmann-json3-dev]=nlohmann/json.hpp [libcli11-dev]=CLI/CLI.hpp
  [libeigen3-dev]=eigen3/Eigen/Core [libfmt-dev]=fmt/format.h [libgtest-dev]=gtest/gtest.h
  [libssl-dev]=openssl/evp.h [libcpp-httplib-dev]=httplib.h [libbrotli-dev]=brotli/decode.h
  [libyaml-cpp-dev]=yaml-cpp/yaml.h [zlib1g-dev]=zlib.h [libboost-dev]=boost/math/distributions/students_t.hpp
  [libvulkan-dev]=vulkan/vulkan.h [spirv-headers]=spirv/unified1/spirv.h
  [libgmock-dev]=gmock/gmock.h [librapidcheck-dev]=rapidcheck.h [libglpk-dev]=glpk.h
)
declare -A command_of=(
  [build-essential]=g++ [cmake]=cmake [ninja-build]=ninja [git]=git [npm]=npm [python3]=python3
  [python3-pip]=pip3 [chromium]=chromium [clang-format]=clang-format [clang-tidy]=clang-tidy
  [dpkg-dev]=dpkg-shlibdeps [file]=file [debootstrap]=debootstrap [qemu-user]=qemu-x86_64
  [bubblewrap]=bwrap [pkg-config]=pkg-config [glslc]=glslc
  [libopenmpi-dev]=mpicxx [openmpi-bin]=mpirun
  [slurm-wlm]=slurmctld [munge]=munged
  [zsh]=zsh [fish]=fish [groff]=groff
)
build=(build-essential cmake ninja-build git npm libsqlite3-dev nlohmann-json3-dev libcli11-dev libeigen3-dev libfmt-dev
       libssl-dev zlib1g-dev libboost-dev libyaml-cpp-dev)
mpi=(libopenmpi-dev openmpi-bin)  # 97 MB: the build does without, its tests do not
test=(libgtest-dev libgmock-dev librapidcheck-dev libglpk-dev pkg-config libcpp-httplib-dev libbrotli-dev python3 bubblewrap
      zsh fish groff "${mpi[@]}")
lint=(clang-format clang-tidy python3)
pip=(python3 python3-pip)
# Clang before 16 does not understand the ranges of GCC 12's library (Debian 12: its 'clang' is 14).
fuzz=(clang-fuzz)
vulkan=(glslc libvulkan-dev spirv-headers mesa-vulkan-drivers)
package=(dpkg-dev file)
package_test=(debootstrap qemu-user)
web=(chromium)
slurm=(slurm-wlm munge)           # for one slow test, which skips without it

# The newest Clang that apt knows, of those that can.
newest_clang() {
  apt-cache search --names-only '^clang-[0-9]+$' 2>/dev/null | sed -n 's/^clang-\([0-9]*\) .*/\1/p' | sort -n | awk '$1 >= 16 && $1 <= 19' | tail -n1
}

wanted=()
for set_name in "${@:-build}"; do
  case "$set_name" in
    build|test|lint|pip|fuzz|vulkan|package|package_test|web|mpi|slurm) declare -n packages="$set_name"; wanted+=("${packages[@]}"); unset -n packages ;;
    *) echo "system-packages.sh: unknown set '$set_name' (build, test, lint, pip, fuzz, vulkan, package, package_test, web, mpi, slurm)" >&2; exit 2 ;;
  esac
done

has_package() {
  local package=$1
  case "$package" in
    clang-fuzz) bash "$(dirname "${BASH_SOURCE[0]}")/find-clang.sh" >/dev/null 2>&1; return ;;
    mesa-vulkan-drivers) ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1; return ;;
  esac
  if [ -n "${command_of[$package]:-}" ]; then
    command -v "${command_of[$package]}" >/dev/null 2>&1 && return 0
    [ "$package" = python3-pip ] && python3 -m pip --version >/dev/null 2>&1 && return 0
    return 1
  fi
  # Asked for, not read: some of these headers take seconds to compile.
  printf '#if !__has_include(<%s>)\n#error\n#endif\n' "${header_of[$package]}" |
    ${CXX:-c++} -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1
}

missing=()
for package in "${wanted[@]}"; do has_package "$package" || missing+=("$package"); done
[ ${#missing[@]} -eq 0 ] && exit 0
named=()
for package in "${missing[@]}"; do
  if [ "$package" != clang-fuzz ]; then named+=("$package"); continue; fi
  version=$(newest_clang)
  named+=("clang${version:+-$version}" "libclang-rt${version:+-$version}-dev")
done
missing=("${named[@]}")

if command -v apt-get >/dev/null 2>&1; then
  run=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then run=(sudo)
    elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then run=(sudo)
    else
      echo "Missing system packages, and no right to install them. Ask an administrator for:" >&2
      echo "    apt-get install ${missing[*]}" >&2
      exit 1
    fi
  fi
  echo "Installing system packages: ${missing[*]}" >&2
  "${run[@]}" apt-get update -qq >&2
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
else
  echo "Missing system packages. Install what your system calls:" >&2
  printf '    %s\n' "${missing[@]}" >&2
  exit 1
fi
