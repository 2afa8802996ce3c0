#!/usr/bin/env python3
"""Writes a model with random F16 weights, of any shape, to measure speed and memory on.

    bench/generate_model.py --layers 24 --width 1024 --vocab 32000 OUT.gguf
    bench/generate_model.py --like qwen3.5-27b OUT.gguf

Without --like it is of the llama architecture. The weights are normally distributed and say nothing; their values repeat every few megabytes. The tokenizer knows single
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


def number(key, value):
    return pair(key, UINT32, struct.pack("<I", value))


def real(key, value):
    return pair(key, FLOAT32, struct.pack("<f", value))


def metadata(options):
    tokens = [*byte_alphabet(), "th"]
    tokens += [f"[unused{i}]" for i in range(options.vocab - len(tokens))]
    kinds = [1] * 257 + [5] * (options.vocab - 257)
    name = options.arch
    return [
        pair("general.architecture", STRING, text(name)),
        pair("general.name", STRING, text(options.like or f"random-{options.layers}x{options.width}")),
        number("general.file_type", 1),
        number(f"{name}.block_count", options.layers),
        number(f"{name}.context_length", options.ctx),
        number(f"{name}.embedding_length", options.width),
        number(f"{name}.feed_forward_length", options.ff),
        number(f"{name}.attention.head_count", options.heads),
        number(f"{name}.attention.head_count_kv", options.kv_heads),
        number(f"{name}.attention.key_length", options.head_width),
        number(f"{name}.attention.value_length", options.head_width),
        real(f"{name}.attention.layer_norm_rms_epsilon", 1e-5),
        *ARCHITECTURES[name][0](options),
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


def llama_metadata(options):
    return [number("llama.vocab_size", options.vocab), number("llama.rope.dimension_count", options.head_width)]


def qwen3moe_metadata(options):
    return [
        number("qwen3moe.expert_count", options.experts),
        number("qwen3moe.expert_used_count", options.experts_used),
        number("qwen3moe.expert_feed_forward_length", options.expert_ff),
        real("qwen3moe.rope.freq_base", 1e6),
    ]


def qwen35_metadata(options):
    return [
        number("qwen35.rope.dimension_count", options.head_width // 4),
        pair("qwen35.rope.dimension_sections", ARRAY, struct.pack("<IQ4i", INT32, 4, 11, 11, 10, 0)),
        real("qwen35.rope.freq_base", 1e7),
        number("qwen35.full_attention_interval", 4),
        number("qwen35.ssm.conv_kernel", 4),
        number("qwen35.ssm.state_size", LINEAR_HEAD_WIDTH),
        number("qwen35.ssm.group_count", options.linear_key_heads),
        number("qwen35.ssm.time_step_rank", options.linear_heads),
        number("qwen35.ssm.inner_size", options.linear_heads * LINEAR_HEAD_WIDTH),
    ]


LINEAR_HEAD_WIDTH = 128


def attention(options, name, query_factor=1, norms=False):
    width, q_width, kv_width = options.width, options.heads * options.head_width, options.kv_heads * options.head_width
    yield name + "attn_q.weight", (width, q_width * query_factor), F16
    yield name + "attn_k.weight", (width, kv_width), F16
    yield name + "attn_v.weight", (width, kv_width), F16
    if norms:
        yield name + "attn_q_norm.weight", (options.head_width,), F32
        yield name + "attn_k_norm.weight", (options.head_width,), F32
    yield name + "attn_output.weight", (q_width, width), F16


def feed_forward(options, name):
    yield name + "ffn_gate.weight", (options.width, options.ff), F16
    yield name + "ffn_up.weight", (options.width, options.ff), F16
    yield name + "ffn_down.weight", (options.ff, options.width), F16


def llama_block(options, layer):
    name = f"blk.{layer}."
    yield name + "attn_norm.weight", (options.width,), F32
    yield from attention(options, name)
    yield name + "ffn_norm.weight", (options.width,), F32
    yield from feed_forward(options, name)


def qwen3moe_block(options, layer):
    name, width = f"blk.{layer}.", options.width
    yield name + "attn_norm.weight", (width,), F32
    yield from attention(options, name, norms=True)
    yield name + "ffn_norm.weight", (width,), F32
    yield name + "ffn_gate_inp.weight", (width, options.experts), F32
    yield name + "ffn_gate_exps.weight", (width, options.expert_ff, options.experts), F16
    yield name + "ffn_up_exps.weight", (width, options.expert_ff, options.experts), F16
    yield name + "ffn_down_exps.weight", (options.expert_ff, width, options.experts), F16


def qwen35_block(options, layer):
    name, width = f"blk.{layer}.", options.width
    key, value = options.linear_key_heads * LINEAR_HEAD_WIDTH, options.linear_heads * LINEAR_HEAD_WIDTH
    yield name + "attn_norm.weight", (width,), F32
    yield name + "post_attention_norm.weight", (width,), F32
    if layer % 4 == 3:
        yield from attention(options, name, query_factor=2, norms=True)  # queries and their gates
    else:
        yield name + "attn_qkv.weight", (width, 2 * key + value), F16
        yield name + "attn_gate.weight", (width, value), F16
        yield name + "ssm_conv1d.weight", (4, 2 * key + value), F32
        yield name + "ssm_dt.bias", (options.linear_heads,), F32
        yield name + "ssm_a", (options.linear_heads,), F32
        yield name + "ssm_alpha.weight", (width, options.linear_heads), F16
        yield name + "ssm_beta.weight", (width, options.linear_heads), F16
        yield name + "ssm_norm.weight", (LINEAR_HEAD_WIDTH,), F32
        yield name + "ssm_out.weight", (value, width), F16
    yield from feed_forward(options, name)


ARCHITECTURES = {
    "llama": (llama_metadata, llama_block),
    "qwen3moe": (qwen3moe_metadata, qwen3moe_block),
    "qwen35": (qwen35_metadata, qwen35_block),
}

# The shapes of models that people use. The tokenizer is not theirs, so the vocabulary only has its size.
SHAPES = {
    "llama-1b": {"arch": "llama", "layers": 16, "width": 2048, "ff": 8192, "heads": 32, "kv_heads": 8, "head_width": 64, "vocab": 128256},
    "llama-8b": {"arch": "llama", "layers": 32, "width": 4096, "ff": 14336, "heads": 32, "kv_heads": 8, "head_width": 128, "vocab": 128256},
    "qwen3-30b-a3b": {"arch": "qwen3moe", "layers": 48, "width": 2048, "ff": 6144, "heads": 32, "kv_heads": 4, "head_width": 128,
                      "vocab": 151936, "experts": 128, "experts_used": 8, "expert_ff": 768},
    "qwen3.5-27b": {"arch": "qwen35", "layers": 64, "width": 5120, "ff": 17408, "heads": 24, "kv_heads": 4, "head_width": 256,
                    "vocab": 248320, "linear_key_heads": 16, "linear_heads": 48},
}


def tensors(options):
    """(name, shape with rows running fastest, type) in the order of the file."""
    yield "token_embd.weight", (options.width, options.vocab), F16
    for layer in range(options.layers):
        yield from ARCHITECTURES[options.arch][1](options, layer)
    yield "output_norm.weight", (options.width,), F32
    yield "output.weight", (options.width, options.vocab), F16


def f32_value(name):
    """Norms do nothing; a recurrent state decays slowly; the router and the convolution are small."""
    if name.endswith("norm.weight"):
        return 1.0
    return -0.1 if name.endswith("ssm_a") else 0.25 if "conv1d" in name else None


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
        for name, shape, kind in entries:
            if kind == F32:
                value = f32_value(name)
                values = [generator.gauss(0.0, 0.02) for _ in range(count(shape))] if value is None else [value] * count(shape)
                data = array.array("f", values).tobytes()
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
    parser.add_argument("--like", choices=sorted(SHAPES), help="the shape of this model; other options change it")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ff", type=int, help="width of the feed-forward part (default: 8/3 of the width)")
    parser.add_argument("--heads", type=int, help="default: width / 64")
    parser.add_argument("--kv-heads", type=int, help="default: a quarter of the heads")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("out", type=pathlib.Path)
    parser.set_defaults(arch="llama", head_width=None)
    like = parser.parse_args().like
    if like:
        parser.set_defaults(**SHAPES[like])
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.width // 64)
    options.kv_heads = options.kv_heads or max(1, options.heads // 4)
    options.head_width = options.head_width or options.width // options.heads
    options.ff = options.ff or -(-options.width * 8 // 3 // 256) * 256
    if (options.width % options.heads and not like) or options.heads % options.kv_heads or options.vocab < 257:
        parser.error("width must be a multiple of heads, heads of kv-heads, and vocab at least 257")
    try:
        write(options)
    except OSError as error:
        sys.exit(f"generate_model.py: {error}")


if __name__ == "__main__":
    main()
