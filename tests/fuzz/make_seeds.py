#!/usr/bin/env python3
"""Writes the seed corpus of the GGUF fuzz target into tests/fuzz/seeds: small files, each with another part of the format.

    tests/fuzz/make_seeds.py            writes them (they are in the repository; this says how they came to be)
"""

import pathlib
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
GGML_F32, GGML_F16, GGML_Q4_0, GGML_Q8_0, GGML_Q4_K = 0, 1, 2, 8, 12
TYPES = {GGML_F32: (1, 4), GGML_F16: (1, 2), GGML_Q4_0: (32, 18), GGML_Q8_0: (32, 34), GGML_Q4_K: (256, 144)}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        item, items = content
        return struct.pack("<iQ", item, len(items)) + b"".join(value(item, each) for each in items)
    return struct.pack("<" + SCALARS[kind], content)


def gguf(keys, tensors, alignment=32, version=3):
    """keys: (name, kind, content); tensors: (name, shape, type)."""
    pad = lambda size: -size % alignment
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, kind, content in keys:
        header += text(name) + struct.pack("<i", kind) + value(kind, content)
    offset, data = 0, b""
    for name, shape, kind in tensors:
        weights = 1
        for length in shape:
            weights *= length
        block, size = TYPES[kind]
        header += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<q", n) for n in shape)
        header += struct.pack("<iQ", kind, offset)
        content = bytes((i * 37 + offset) % 251 for i in range(weights // block * size))
        if kind == GGML_F32:  # so that importance matrices have values that can be used
            content = b"".join(struct.pack("<f", i % 7) for i in range(weights))
        data += content + bytes(pad(len(content)))
        offset = len(data)
    return header + bytes(pad(len(header))) + data


def legacy(entries, tail=b""):
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + tail


architecture = ("general.architecture", STRING, "llama")
SEEDS = {
    "smallest.gguf": gguf([architecture], [("a.weight", (32,), GGML_F32)]),
    "types.gguf": gguf([architecture, ("llama.block_count", U32, 1)],
                       [("token_embd.weight", (32, 2), GGML_F16), ("blk.0.a.weight", (32, 3), GGML_Q4_0),
                        ("blk.0.b.weight", (256, 1), GGML_Q4_K), ("blk.0.exps.weight", (32, 2, 3), GGML_Q8_0)]),
    "scalars.gguf": gguf([("u8", U8, 1), ("i8", I8, -1), ("u16", U16, 2), ("i16", I16, -2), ("u32", U32, 3), ("i32", I32, -3),
                          ("f32", F32, 0.5), ("bool", BOOL, True), ("u64", U64, 1 << 63), ("i64", I64, -4), ("f64", F64, 0.25)],
                         [("a", (1,), GGML_F32)]),
    "arrays.gguf": gguf([("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "", "\u00e9", "d"])), ("scores", ARRAY, (F32, [0.0, 1.0])),
                         ("many", ARRAY, (U8, list(range(20)))), ("none", ARRAY, (I32, [])), ("flags", ARRAY, (BOOL, [True, False]))],
                        [("a", (4, 4), GGML_F32)]),
    "alignment.gguf": gguf([("general.alignment", U32, 64)], [("a", (3,), GGML_F32), ("b", (5,), GGML_F32)], alignment=64),
    "version2.gguf": gguf([architecture], [("a", (8, 2), GGML_F32)], version=2),
    "split.gguf": gguf([("split.no", U16, 0), ("split.count", U16, 2), ("split.tensors.count", I32, 2)], [("a", (8,), GGML_F32)]),
    "nested.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("n") + struct.pack("<iiQ", ARRAY, ARRAY, 1) + struct.pack("<iQ", U8, 0),
    "imatrix.gguf": gguf([("general.type", STRING, "imatrix"), ("imatrix.datasets", ARRAY, (STRING, ["t.txt"])),
                          ("imatrix.chunk_count", U32, 2), ("imatrix.chunk_size", U32, 64)],
                         [("blk.0.a.weight.in_sum2", (8, 2), GGML_F32), ("blk.0.a.weight.counts", (1, 2), GGML_F32)]),
    "imatrix.dat": legacy([("blk.0.a.weight", 3, [1.0, 2.0, 0.5]), ("blk.1.a.weight", 0, [4.0])],
                          struct.pack("<ii", 3, 5) + b"t.txt"),
    "imatrix-short.dat": legacy([("blk.0.a.weight", 1, [1.0])]),
}

if __name__ == "__main__":
    folder = pathlib.Path(__file__).resolve().parent / "seeds"
    folder.mkdir(exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)
