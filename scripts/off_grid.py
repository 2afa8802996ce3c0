#!/usr/bin/env python3
"""Turns a quantized GGUF into an F16 source whose weights sit on no quantization grid ("off-grid").

    scripts/off_grid.py model-q4_k_m.gguf model-off-grid-f16.gguf
    scripts/off_grid.py --check model-off-grid-f16.gguf

A dequantized model is a poor source to try a quantizer on: each of its weights is a whole number of steps of its block, so
some types take it without any loss. Here every weight of a quantized tensor gets uniform noise of at most half a step of
its own block, which is what the grid took from it; the result rounds to the very same integers of that grid. Matrices
become F16, all other tensors stay as they are, and so does all metadata but general.name, general.description and
general.file_type. The noise of a tensor depends on the seed and the tensor's name alone.

--check proves that no type is lossless on a file: in every F16 matrix it looks for groups of weights that no choice of scale
and offset puts on a grid with as many levels as the type has, F16's own rounding allowed for.

Needs numpy and llama.cpp's gguf-py: on PYTHONPATH, installed, or from `scripts/llama-cpp.sh source`.
"""

import argparse
import hashlib
import importlib
import importlib.util
import mmap
import os
import pathlib
import struct
import subprocess
import sys
import types

import numpy as np

CHUNK_WEIGHTS = 1 << 20  # at a time: small enough for the processor's caches
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, STRING, ARRAY = 4, 8, 9
# How many weights share one scale and offset, and how many integers a weight can be. Any scale and offset count as possible,
# though the types quantize or lack them: to a type's advantage.
GRIDS = {"Q2_K": (16, 4), "Q3_K": (16, 8), "Q4_0": (32, 16), "Q4_1": (32, 16), "Q4_K": (32, 16), "Q5_0": (32, 32),
         "Q5_1": (32, 32), "Q5_K": (32, 32), "Q6_K": (16, 64), "Q8_0": (32, 256)}
CODEBOOKS = {"IQ4_NL": (32, 16), "IQ4_XS": (32, 16)}  # as many values as a group can have, at any distances
CHECK_ROWS = 256
SELF = "off_grid.py"


class OffGridError(Exception):
    """One line: what failed, where, what to do."""


def load_gguf_py():
    """gguf-py's modules `constants` and `quants`. The package around them is left out, as it wants more than numpy."""
    found = importlib.util.find_spec("gguf")
    if found:
        places = list(found.submodule_search_locations)
    else:
        script = pathlib.Path(__file__).resolve().parent / "llama-cpp.sh"
        done = subprocess.run(["bash", str(script), "source"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise OffGridError("gguf-py is not there; set PYTHONPATH to the folder gguf-py of llama.cpp's source tree")
        places = [str(pathlib.Path(done.stdout.strip()) / "gguf-py" / "gguf")]
    package = types.ModuleType("gguf")
    package.__path__ = places
    sys.modules["gguf"] = package
    return importlib.import_module("gguf.constants"), importlib.import_module("gguf.quants")


class Tensor:
    def __init__(self, name, dims, kind, offset):
        self.name, self.dims, self.kind, self.offset = name, dims, kind, offset
        self.n_weights = int(np.prod(dims, dtype=object)) if dims else 1


class Gguf:
    """A GGUF file's header: `pairs` holds key -> (type, value's raw bytes), in the file's order."""

    def __init__(self, path, constants):
        self.path, self.block_of = path, constants.GGML_QUANT_SIZES
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        try:
            self._parse(constants.GGMLQuantizationType)
        except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
            raise OffGridError(f"{path} is no whole GGUF file: {error}") from error

    def _parse(self, type_of):
        magic, version, n_tensors, n_pairs = self._take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError("the first bytes are not those of GGUF version 3")
        self.pairs = {}
        for _ in range(n_pairs):
            key = self._text()
            kind, = self._take("<I")
            begin = self.at
            self._skip(kind)
            self.pairs[key] = (kind, self.data[begin:self.at])
        self.tensors = []
        for _ in range(n_tensors):
            name = self._text()
            n_dims, = self._take("<I")
            dims = self._take(f"<{n_dims}Q")
            kind, offset = self._take("<IQ")
            self.tensors.append(Tensor(name, dims, type_of(kind), offset))
        self.alignment = struct.unpack("<I", self.pairs["general.alignment"][1])[0] if "general.alignment" in self.pairs else 32
        self.data_begin = -(-self.at // self.alignment) * self.alignment
        for tensor in self.tensors:
            if self.data_begin + tensor.offset + self.n_bytes(tensor) > len(self.data):
                raise ValueError(f"the data of {tensor.name} are cut off")

    def _take(self, layout):
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def _text(self):
        n_bytes, = self._take("<Q")
        self.at += n_bytes
        return self.data[self.at - n_bytes:self.at].decode()

    def _skip(self, kind):
        if kind == STRING:
            n_bytes, = self._take("<Q")
            self.at += n_bytes
        elif kind == ARRAY:
            item, count = self._take("<IQ")
            if item in SCALAR_FORMATS:
                self.at += count * struct.calcsize(SCALAR_FORMATS[item])
            else:
                for _ in range(count):
                    self._skip(item)
        else:
            self.at += struct.calcsize(SCALAR_FORMATS[kind])

    def n_bytes(self, tensor):
        block_weights, block_bytes = self.block_of[tensor.kind]
        return tensor.n_weights // block_weights * block_bytes

    def bytes_of(self, tensor):
        """The tensor's data, not copied."""
        return np.frombuffer(self.data, np.uint8, self.n_bytes(tensor), self.data_begin + tensor.offset)

    def string(self, key):
        return self.pairs[key][1][8:].decode() if self.pairs.get(key, (None,))[0] == STRING else ""

    def set_string(self, key, value):
        self.pairs[key] = (STRING, struct.pack("<Q", len(value.encode())) + value.encode())


def half_floats(blocks, first_byte):
    """The F16 number at this place of every block, as a column."""
    return np.ascontiguousarray(blocks[:, first_byte:first_byte + 2]).view("<f2").astype(np.float32)


def step_functions(quants):
    """What one integer is worth: type -> function of blocks [n][bytes], to steps [n][groups of one scale]."""
    def of_block(blocks):
        return half_floats(blocks, 0)

    def of_k_block(blocks):
        scales, _ = quants.Q4_K.get_scale_min(blocks[:, 4:16])
        return half_floats(blocks, 0) * scales.reshape(len(blocks), -1).astype(np.float32)

    def of_q6_k(blocks):
        return half_floats(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)

    return {"Q4_0": of_block, "Q4_1": of_block, "Q5_0": of_block, "Q5_1": of_block, "Q8_0": of_block, "Q4_K": of_k_block,
            "Q5_K": of_k_block, "Q6_K": of_q6_k}


def noise_bits(seed, name):
    """A function that gives the next n numbers of 32 random bits of this tensor. numpy promises the same ones for ever."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    generator = np.random.SFC64(key)
    return lambda n: generator.random_raw((n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]


def off_grid_blocks(dequantize, step, blocks, bits):
    """Weights of `blocks` with their noise, as F32 [blocks][weights]."""
    steps = step(blocks)
    weights = dequantize(blocks)
    grouped = weights.reshape(len(blocks), steps.shape[1], -1)
    noise = (bits(weights.size) >> np.uint32(8)).astype(np.float32).reshape(grouped.shape)
    noise *= np.float32(2.0 ** -24)
    noise -= np.float32(0.5)
    noise *= steps[:, :, None]
    noise += grouped
    return noise.reshape(weights.shape)


class Maker:
    """Writes one off-grid file."""

    def __init__(self, source, constants, quants, seed):
        self.source, self.seed = source, seed
        self.types, self.quants = constants.GGMLQuantizationType, quants
        self.steps = step_functions(quants)
        self.plain = {kind for kind, (weights, _) in constants.GGML_QUANT_SIZES.items() if weights == 1}
        self.block_of = constants.GGML_QUANT_SIZES
        self._check_types()

    def _check_types(self):
        quantized = [tensor for tensor in self.source.tensors if tensor.kind not in self.plain]
        if not quantized:
            raise OffGridError(f"no tensor of {self.source.path} is quantized, so nothing is on a grid; use it as it is")
        for tensor in quantized:
            if tensor.kind.name not in self.steps:
                raise OffGridError(f"{tensor.name} of {self.source.path} is {tensor.kind.name}, whose steps are not known here "
                                   f"(known: {', '.join(self.steps)})")

    def describe(self, digest):
        source, f16 = self.source, self.types.F16
        kinds = sorted({tensor.kind.name for tensor in source.tensors if tensor.kind not in self.plain})
        source.set_string("general.name", (source.string("general.name") or source.path.stem) + " (off-grid)")
        source.set_string("general.description", " ".join(filter(None, [
            source.string("general.description"),
            f"Off-grid: dequantized from the file with SHA-256 {digest}; every weight of a {', '.join(kinds)} tensor then got "
            f"uniform noise of at most half a step of its own block (seed {self.seed}), so that it sits on no quantization "
            f"grid. Not the weights that were trained: a source for trying quantizers on."])))
        source.pairs["general.file_type"] = (UINT32, struct.pack("<I", f16.value))

    def write(self, target):
        """Writes the whole file to `target`, a path."""
        source, kinds, sizes = self.source, [], []
        for tensor in source.tensors:
            kinds.append(tensor.kind if tensor.kind in self.plain else self.types.F16)
            sizes.append(tensor.n_weights * self.block_of[kinds[-1]][1])
        head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(source.tensors), len(source.pairs)))
        for key, (kind, value) in source.pairs.items():
            head += struct.pack("<Q", len(key.encode())) + key.encode() + struct.pack("<I", kind) + value
        offset = 0
        for tensor, kind, size in zip(source.tensors, kinds, sizes):
            name = tensor.name.encode()
            head += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
            head += struct.pack("<IQ", kind.value, offset)
            offset += -(-size // source.alignment) * source.alignment
        with open(target, "wb") as out:
            out.write(head + b"\0" * (-len(head) % source.alignment))
            for tensor, size in zip(source.tensors, sizes):
                self._write_data(tensor, out)
                out.write(b"\0" * (-size % source.alignment))

    def _write_data(self, tensor, out):
        data = self.source.bytes_of(tensor)
        if tensor.kind in self.plain:
            out.write(data)
            return
        block_weights, block_bytes = self.block_of[tensor.kind]
        blocks = data.reshape(-1, block_bytes)
        dequantize = getattr(self.quants, tensor.kind.name).dequantize_blocks
        step, bits = self.steps[tensor.kind.name], noise_bits(self.seed, tensor.name)
        at_once = CHUNK_WEIGHTS // block_weights
        for begin in range(0, len(blocks), at_once):
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                weights = off_grid_blocks(dequantize, step, blocks[begin:begin + at_once], bits).astype("<f2")
            if not np.isfinite(weights).all():
                raise OffGridError(f"{tensor.name} of {self.source.path} has a weight that is no finite F16 number")
            out.write(weights)


def sha256_of(data):
    digest = hashlib.sha256()
    for begin in range(0, len(data), 1 << 20):
        digest.update(data[begin:begin + (1 << 20)])
    return digest.hexdigest()


def make(source_path, target, seed, constants, quants):
    source = Gguf(source_path, constants)
    maker = Maker(source, constants, quants, seed)
    maker.describe(sha256_of(source.data))
    partial = target.with_name(target.name + ".partial")
    try:
        maker.write(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def off_a_grid(rows, group, levels):
    """Share of groups of `group` weights that lie on no evenly spaced grid of `levels` values.

    A grid that holds a group has a step of at least its range / (levels - 1), and no two of its values are closer than a
    step. F16 may have moved every value by half its last place."""
    groups = np.sort(rows.reshape(-1, group), axis=1)
    error = np.maximum(np.abs(groups[:, 0]), np.abs(groups[:, -1])) * 2.0 ** -11 + 2.0 ** -25
    gaps = np.diff(groups, axis=1)
    gaps[gaps == 0] = np.inf
    closest = gaps.min(axis=1)
    return np.mean((closest + 2 * error) * (levels - 1) < groups[:, -1] - groups[:, 0] - 2 * error)


def off_a_codebook(rows, group, levels):
    """Share of groups that have more different values than a codebook of `levels` values."""
    groups = np.sort(rows.reshape(-1, group), axis=1)
    return np.mean(np.count_nonzero(np.diff(groups, axis=1), axis=1) + 1 > levels)


def check(path, constants):
    """Prints, for each type, the tensor that came nearest to fitting; True where none of any type can be lossless."""
    source = Gguf(path, constants)
    matrices = [tensor for tensor in source.tensors if tensor.kind.name == "F16" and len(tensor.dims) > 1]
    if not matrices:
        raise OffGridError(f"{path} has no F16 matrix to check")
    least = {}
    for tensor in matrices:
        rows = source.bytes_of(tensor).view("<f2").reshape(-1, tensor.dims[0])
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(CHECK_ROWS, len(rows))).astype(int))
        sample = rows[chosen].astype(np.float32)
        for grids, share_of in [(GRIDS, off_a_grid), (CODEBOOKS, off_a_codebook)]:
            for name, (group, levels) in grids.items():
                if tensor.dims[0] % constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[name]][0] == 0:
                    least[name] = min(least.get(name, (2.0, "")), (share_of(sample, group, levels), tensor.name))
    for name, (share, tensor) in least.items():
        verdict = "not lossless" if share > 0 else "MAY BE LOSSLESS"
        print(f"{name:<7} {verdict}: at least {100 * share:5.1f} % of the groups of each tensor are off its grid (least: {tensor})")
    return all(share > 0 for share, _ in least.values())


def main():
    parser = argparse.ArgumentParser(prog=SELF, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the noise (default 1)")
    parser.add_argument("--check", action="store_true", help="only prove that no type is lossless on INPUT")
    parser.add_argument("input", type=pathlib.Path, metavar="INPUT.gguf")
    parser.add_argument("output", type=pathlib.Path, nargs="?", metavar="OUTPUT.gguf")
    options = parser.parse_args()
    if options.check == bool(options.output):
        parser.error("name INPUT.gguf and OUTPUT.gguf, or --check and INPUT.gguf")
    constants, quants = load_gguf_py()
    if not options.check:
        make(options.input, options.output, options.seed, constants, quants)
    elif not check(options.input, constants):
        raise OffGridError(f"a type may be lossless on a tensor of {options.input} (see above)")


if __name__ == "__main__":
    try:
        main()
    except (OffGridError, OSError, ValueError) as error:
        print(f"{SELF}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
