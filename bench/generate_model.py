#!/usr/bin/env python3
"""Writes a model of the llama architecture with random F16 weights, of any shape, to measure speed and memory on.

    bench/generate_model.py --layers 24 --width 1024 --vocab 32000 OUT.gguf

The weights are normally distributed and say nothing; their values repeat every few megabytes. The tokenizer knows single
bytes. Needs nothing but Python.
"""

import argparse
import array
import pathlib
import random
import struct
import sys

ALIGNMENT = 32
F32, F16 = 0, 1
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def texts(key, values):
    return pair(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    symbols = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def metadata(options):
    tokens = [*byte_alphabet(), "th"]
    tokens += [f"[unused{i}]" for i in range(options.vocab - len(tokens))]
    kinds = [1] * 257 + [5] * (options.vocab - 257)
    number = lambda key, value: pair(key, UINT32, struct.pack("<I", value))
    real = lambda key, value: pair(key, FLOAT32, struct.pack("<f", value))
    return [
        pair("general.architecture", STRING, text("llama")),
        pair("general.name", STRING, text(f"random-{options.layers}x{options.width}")),
        number("general.file_type", 1),
        number("llama.block_count", options.layers),
        number("llama.context_length", options.ctx),
        number("llama.embedding_length", options.width),
        number("llama.feed_forward_length", options.ff),
        number("llama.attention.head_count", options.heads),
        number("llama.attention.head_count_kv", options.kv_heads),
        real("llama.attention.layer_norm_rms_epsilon", 1e-5),
        number("llama.vocab_size", options.vocab),
        pair("tokenizer.ggml.model", STRING, text("gpt2")),
        pair("tokenizer.ggml.pre", STRING, text("default")),
        texts("tokenizer.ggml.tokens", tokens),
        pair("tokenizer.ggml.token_type", ARRAY,
             struct.pack("<IQ", INT32, len(kinds)) + struct.pack(f"<{len(kinds)}i", *kinds)),
        texts("tokenizer.ggml.merges", ["t h"]),
        number("tokenizer.ggml.bos_token_id", 0),
        number("tokenizer.ggml.eos_token_id", 0),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\0"),
    ]


def tensors(options):
    """(name, shape with rows running fastest, type) in the order of the file."""
    width, kv_width = options.width, options.width // options.heads * options.kv_heads
    yield "token_embd.weight", (width, options.vocab), F16
    for layer in range(options.layers):
        name = f"blk.{layer}."
        yield name + "attn_norm.weight", (width,), F32
        yield name + "attn_q.weight", (width, width), F16
        yield name + "attn_k.weight", (width, kv_width), F16
        yield name + "attn_v.weight", (width, kv_width), F16
        yield name + "attn_output.weight", (width, width), F16
        yield name + "ffn_norm.weight", (width,), F32
        yield name + "ffn_gate.weight", (width, options.ff), F16
        yield name + "ffn_up.weight", (width, options.ff), F16
        yield name + "ffn_down.weight", (options.ff, width), F16
    yield "output_norm.weight", (width,), F32
    yield "output.weight", (width, options.vocab), F16


def count(shape):
    product = 1
    for length in shape:
        product *= length
    return product


def padded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def write(options):
    entries = list(tensors(options))
    pairs = metadata(options)
    infos, offset = [], 0
    for name, shape, kind in entries:
        infos.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) +
                     struct.pack("<IQ", kind, offset))
        offset += padded(count(shape) * (4 if kind == F32 else 2))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs)) + b"".join(pairs) + b"".join(infos)
    # One pool of random values serves all tensors, each from another place in it.
    generator = random.Random(options.seed)
    pool_values = 1 << 21
    sigma = options.width ** -0.5
    pool = struct.pack(f"<{pool_values}e", *(generator.gauss(0.0, sigma) for _ in range(pool_values)))
    pool += pool
    with open(options.out, "wb") as file:
        file.write(head.ljust(padded(len(head)), b"\0"))
        for _, shape, kind in entries:
            if kind == F32:
                data = array.array("f", [1.0] * count(shape)).tobytes()
                file.write(data.ljust(padded(len(data)), b"\0"))
                continue
            left = count(shape) * 2
            while left > 0:
                size = min(left, pool_values * 2)
                start = generator.randrange(pool_values) * 2
                file.write(pool[start:start + size])
                left -= size
            file.write(b"\0" * (padded(count(shape) * 2) - count(shape) * 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ff", type=int, help="width of the feed-forward part (default: 8/3 of the width)")
    parser.add_argument("--heads", type=int, help="default: width / 64")
    parser.add_argument("--kv-heads", type=int, help="default: a quarter of the heads")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.width // 64)
    options.kv_heads = options.kv_heads or max(1, options.heads // 4)
    options.ff = options.ff or -(-options.width * 8 // 3 // 256) * 256
    if options.width % options.heads or options.heads % options.kv_heads or options.vocab < 257:
        parser.error("width must be a multiple of heads, heads of kv-heads, and vocab at least 257")
    try:
        write(options)
    except OSError as error:
        sys.exit(f"generate_model.py: {error}")


if __name__ == "__main__":
    main()
