#!/usr/bin/env python3
"""Trains the embedded model anew: the shape and the tokenizer of MODEL.gguf, weights from nothing.

    train.py MODEL.gguf OUT.gguf --part prose.txt:0.55 --part python.txt:0.39 --part wikitext.txt:0.06 --minutes 7

Parts are files of corpus.py with their share of the training tokens; one document in 50 of each (at least one) is held out and never
trained on. Training ends when the minutes are over; the learning rate is a function of the time used. Needs PyTorch and
tokenizers; runs on a GPU where there is one. Writes OUT.gguf and, beside it, OUT.json: settings, losses, provenance.
"""

import argparse
import hashlib
import json
import math
import pathlib
import struct
import time

import numpy
import tokenizers
import torch
import torch.nn.functional as F

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16 = 0, 1
ALIGNMENT = 32


class Gguf:
    """Metadata as (key, type, raw bytes) in the file's order, values decoded beside them, and the tensors' names, shapes, types."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        if self.data[:4] != b"GGUF":
            raise SystemExit(f"train.py: {path} is no GGUF file")
        self.at = 4
        self.version, tensors, pairs = self.scalar("I"), self.scalar("Q"), self.scalar("Q")
        self.raw, self.values = [], {}
        for _ in range(pairs):
            key, kind = self.text(), self.scalar("I")
            start = self.at
            self.values[key] = self.value(kind)
            self.raw.append((key, kind, self.data[start : self.at]))
        self.tensors = [(self.text(), [self.scalar("Q") for _ in range(self.scalar("I"))], self.scalar("I"), self.scalar("Q")) for _ in range(tensors)]

    def scalar(self, code):
        size = struct.calcsize("<" + code)
        self.at += size
        return struct.unpack("<" + code, self.data[self.at - size : self.at])[0]

    def text(self):
        size = self.scalar("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def text_bytes(value):
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def write_gguf(path, source, changed, weights):
    """The source's metadata with `changed` strings set or added, and `weights` (name to float32 array) in the source's types."""
    pairs = [(key, kind, text_bytes(changed[key]) if key in changed else raw) for key, kind, raw in source.raw]
    known = {key for key, _, _ in pairs}
    added = [(key, STRING, text_bytes(value)) for key, value in changed.items() if key not in known]
    # After the other general.* keys.
    last = max(i for i, (key, _, _) in enumerate(pairs) if key.startswith("general.") and key != "general.file_type") + 1
    pairs[last:last] = added
    header = [b"GGUF", struct.pack("<IQQ", source.version, len(source.tensors), len(pairs))]
    header += [text_bytes(key) + struct.pack("<I", kind) + raw for key, kind, raw in pairs]
    blobs, offset = [], 0
    for name, shape, kind, _ in source.tensors:
        blob = weights[name].astype({F32: "<f4", F16: "<f2"}[kind]).tobytes()
        blob += b"\0" * (-len(blob) % ALIGNMENT)
        header.append(text_bytes(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset))
        blobs.append(blob)
        offset += len(blob)
    head = b"".join(header)
    pathlib.Path(path).write_bytes(head + b"\0" * (-len(head) % ALIGNMENT) + b"".join(blobs))


class Block(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, ff, head, heads, kv_heads = shape["width"], shape["ff"], shape["head"], shape["heads"], shape["kv_heads"]
        self.head, self.heads, self.kv_heads, self.dropout = head, heads, kv_heads, shape["dropout"]
        self.attn_norm = torch.nn.RMSNorm(width, eps=shape["epsilon"])
        self.attn_q = torch.nn.Linear(width, heads * head, bias=False)
        self.attn_k = torch.nn.Linear(width, kv_heads * head, bias=False)
        self.attn_v = torch.nn.Linear(width, kv_heads * head, bias=False)
        self.attn_output = torch.nn.Linear(heads * head, width, bias=False)
        self.ffn_norm = torch.nn.RMSNorm(width, eps=shape["epsilon"])
        self.ffn_gate = torch.nn.Linear(width, ff, bias=False)
        self.ffn_up = torch.nn.Linear(width, ff, bias=False)
        self.ffn_down = torch.nn.Linear(ff, width, bias=False)

    def rotate(self, x, cosine, sine):
        """llama.cpp's order for the architecture llama: neighbours are a pair."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)

    def forward(self, x, cosine, sine):
        batch, length, _ = x.shape
        normed = self.attn_norm(x)
        q = self.attn_q(normed).view(batch, length, self.heads, self.head).transpose(1, 2)
        k = self.attn_k(normed).view(batch, length, self.kv_heads, self.head).transpose(1, 2)
        v = self.attn_v(normed).view(batch, length, self.kv_heads, self.head).transpose(1, 2)
        q, k = self.rotate(q, cosine, sine).to(v.dtype), self.rotate(k, cosine, sine).to(v.dtype)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
        x = x + F.dropout(self.attn_output(attended), self.dropout, self.training)
        normed = self.ffn_norm(x)
        return x + F.dropout(self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed)), self.dropout, self.training)


class Model(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.token_embd = torch.nn.Embedding(shape["vocab"], shape["width"])
        self.blk = torch.nn.ModuleList(Block(shape) for _ in range(shape["blocks"]))
        self.output_norm = torch.nn.RMSNorm(shape["width"], eps=shape["epsilon"])
        self.output = torch.nn.Linear(shape["width"], shape["vocab"], bias=False)
        angles = torch.outer(torch.arange(shape["context"]).float(), shape["rope_base"] ** (-torch.arange(0, shape["head"], 2).float() / shape["head"]))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.02 if not name.endswith(("attn_output.weight", "ffn_down.weight")) else 0.02 / math.sqrt(2 * shape["blocks"])
                torch.nn.init.normal_(parameter, std=deviation)

    def forward(self, tokens, targets, reduction="mean"):
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]])
        logits = self.output(self.output_norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def shape_of(gguf, dropout):
    of = lambda key: gguf.values["llama." + key]
    return {"blocks": of("block_count"), "width": of("embedding_length"), "ff": of("feed_forward_length"), "heads": of("attention.head_count"),
            "kv_heads": of("attention.head_count_kv"), "head": of("rope.dimension_count"), "epsilon": of("attention.layer_norm_rms_epsilon"),
            "rope_base": of("rope.freq_base"), "vocab": of("vocab_size"), "context": of("context_length"), "dropout": dropout}


def tokenizer_of(gguf):
    if gguf.values["tokenizer.ggml.pre"] != "gpt-2":
        raise SystemExit("train.py: expects the pre-tokenizer gpt-2")
    tokens = gguf.values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in gguf.values["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def tokenize(tokenizer, path, separator):
    """Token streams for training and for judging, each document preceded by the separator."""
    documents = [document for document in pathlib.Path(path).read_text(encoding="utf-8").split("\0") if document]
    marks = [hashlib.blake2b(document.encode(), digest_size=2).digest() for document in documents]
    held = {i for i, mark in enumerate(marks) if int.from_bytes(mark, "little") % 50 == 0} or {0}
    streams = {False: [], True: []}
    for start in range(0, len(documents), 4096):
        for i, encoding in enumerate(tokenizer.encode_batch_fast(documents[start : start + 4096], add_special_tokens=False), start):
            streams[i in held] += [numpy.array([separator], numpy.int16), numpy.array(encoding.ids, numpy.int16)]
    return numpy.concatenate(streams[False]), numpy.concatenate(streams[True])


def windows(stream, starts, length, separator):
    """Inputs begin with the separator, as llama-perplexity's windows do; the targets follow without a gap."""
    spans = stream[starts[:, None] + torch.arange(length, device=stream.device)].long()
    inputs = torch.cat((torch.full_like(spans[:, :1], separator), spans[:, :-1]), dim=1)
    return inputs, spans


@torch.no_grad()
def judge(model, stream, context, separator, precision, limit=400):
    """Mean loss of the second half of up to `limit` windows, as llama-perplexity scores them."""
    model.eval()
    starts = torch.arange(0, max(len(stream) - context, 0), context, device=stream.device)[:limit]
    total = count = 0
    for part in starts.split(50):
        inputs, targets = windows(stream, part, context, separator)
        with precision:
            losses = model(inputs, targets, reduction="none").view(len(part), context)
        total += losses[:, context // 2 :].double().sum().item()
        count += losses[:, context // 2 :].numel()
    model.train()
    return total / max(count, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--part", action="append", required=True, metavar="FILE:SHARE")
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--batch", type=int, default=256, help="windows of a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    source = Gguf(options.model)
    shape, separator = shape_of(source, options.dropout), source.values["tokenizer.ggml.bos_token_id"]
    began = time.monotonic()
    tokenizer = tokenizer_of(source)
    parts = {}
    for part in options.part:
        path, share = part.rsplit(":", 1)
        training, held = (torch.from_numpy(stream).to(device) for stream in tokenize(tokenizer, path, separator))
        parts[pathlib.Path(path).stem] = {"share": float(share), "training": training, "held": held}
    total_share = sum(part["share"] for part in parts.values())
    for name, part in parts.items():
        part["rows"] = round(options.batch * part["share"] / total_share)
        print(f"{name}: {len(part['training']):,} tokens, held out {len(part['held']):,}, {part['rows']} windows of a step", flush=True)
    print(f"tokenized in {time.monotonic() - began:.0f} s", flush=True)

    model = Model(shape).to(device)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and n != "token_embd.weight"]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or n == "token_embd.weight"]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": options.decay}, {"params": others, "weight_decay": 0.0}],
                                  lr=options.rate, betas=(0.9, 0.95), eps=1e-10, fused=device == "cuda")
    precision = torch.autocast(device, torch.bfloat16) if device == "cuda" else torch.autocast(device, enabled=False)
    run = model if options.no_compile or device == "cpu" else torch.compile(model)

    def step():
        batches = [windows(part["training"], torch.randint(len(part["training"]) - shape["context"], (part["rows"],), device=device), shape["context"], separator)
                   for part in parts.values() if part["rows"]]
        inputs, targets = (torch.cat(each) for each in zip(*batches))
        with precision:
            loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def losses():
        return {name: round(judge(model, part["held"], shape["context"], separator, precision), 4) for name, part in parts.items()}

    # The rate is held after a warm-up and falls linearly to nothing over the second half of the time. Compiling is not counted.
    deadline = options.minutes * 60
    started, steps, history = None, 0, []
    next_report = 0.0
    while True:
        used = 0.0 if started is None else (time.monotonic() - started) / deadline
        if used >= 1:
            break
        rate = options.rate * min(1.0, (steps + 1) / 300) * min(1.0, 2 * (1 - used))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = step()
        steps += 1
        if steps == 10:
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.monotonic()
        if started is not None and used >= next_report:
            next_report += 0.1
            entry = {"steps": steps, "tokens": steps * sum(part["rows"] for part in parts.values()) * shape["context"], "rate": rate,
                     "training loss": round(loss.item(), 4), "held out": losses()}
            history.append(entry)
            print(f"{time.monotonic() - started:5.0f} s {entry}", flush=True)
        elif steps % 50 == 0:
            loss.item()  # the queue stays short, so that the clock means something
    entry = {"steps": steps, "tokens": steps * sum(part["rows"] for part in parts.values()) * shape["context"], "held out": losses()}
    history.append(entry)
    print(f"  end   {entry}", flush=True)

    weights = {name: parameter.detach().float().cpu().numpy() for name, parameter in model.named_parameters()}
    names = ", ".join(f"{name} {part['share'] / total_share:.0%}" for name, part in parts.items())
    changed = {
        "general.description": "Embedded demonstration model: 6 layers, width 256, trained on WikiText-2, documentation and Python source",
        "general.training": f"{entry['tokens']} tokens in {steps} steps ({names} of {sum(len(part['training']) for part in parts.values())} distinct tokens), "
                            f"AdamW, rate {options.rate}, {options.minutes} minutes on {torch.cuda.get_device_name() if device == 'cuda' else 'a CPU'}",
    }
    write_gguf(options.out, source, changed, weights)
    record = {"options": vars(options), "parts": {name: {"share": part["share"] / total_share, "tokens": len(part["training"]), "held out": len(part["held"])}
                                                  for name, part in parts.items()}, "history": history}
    pathlib.Path(options.out).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
