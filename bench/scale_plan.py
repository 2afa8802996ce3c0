#!/usr/bin/env python3
"""What measuring a large mixture of experts takes on 1, 8 and 64 GPUs: memory, traffic, time and cost, worked out from the
model's shape and from assumptions that are all options of this script (docs/scaling.md has its output).

    bench/scale_plan.py [--json] [--OPTION VALUE]...

The default model has the published shape of Qwen3.5-397B-A17B. Time is the larger of arithmetic and memory traffic of every
replay, plus quantizing on the CPU where that is not hidden behind replays.
"""

import argparse
import json
import math

ASSUMPTIONS = [  # name, default, what it is
    ("layers", 60, "blocks"),
    ("width", 4096, "of the residual stream"),
    ("vocabulary", 248320, "tokens"),
    ("experts", 512, "in a block"),
    ("experts-used", 10, "by a token, beside the shared one"),
    ("expert-width", 1024, "of an expert"),
    ("attention-weights", 115e6, "of a block's attention or recurrent mixer, on average"),
    ("bytes-per-weight", 2.0, "of the source as it runs (BF16 2, --reference q8_0 1.0625)"),
    ("tokens", 4096, "measured on"),
    ("window", 512, "tokens of a window"),
    ("types", 19, "per tensor"),
    ("tensors-per-block", 10, "that are measured"),
    ("gpu-memory", 141e9, "bytes of a GPU"),
    ("gpu-bandwidth", 4.8e12 * 0.6, "bytes per second of its memory that a replay reaches (60 % of an H200's)"),
    ("gpu-flops", 990e12 * 0.25, "operations per second that a replay reaches (25 % of an H200's dense BF16)"),
    ("host-memory", 2e12, "bytes of a machine"),
    ("host-link", 25e9, "bytes per second from host to GPU"),
    ("disk", 3e9, "bytes per second from the file"),
    ("host-cores", 16, "cores per GPU that quantize"),
    ("quantize-rate", 2.5e6, "weights per second and core, mean over all types (docs/scaling.md says how measured)"),
    ("network", 10e9 / 8, "bytes per second between machines"),
    ("gpus-per-machine", 8, ""),
    ("price", 4.0, "of a GPU with its share of the machine, per hour"),
]


def plan(o, gpus):
    expert = 3 * o.width * o.expert_width
    of_experts = o.layers * o.experts * expert
    block = o.attention_weights + (o.experts + 1) * expert
    block_active = o.attention_weights + (o.experts_used + 1) * expert
    embedding = 2 * o.vocabulary * o.width
    weights = o.layers * block + embedding
    active = o.layers * block_active + embedding / 2
    windows = o.tokens / o.window

    machines = max(1, gpus // int(o.gpus_per_machine))
    source_bytes = weights * o.bytes_per_weight
    # Every rank goes through the whole model, so this is about one GPU.
    resident = o.gpu_memory * 0.85 >= source_bytes
    state = o.window * o.width * 4.0
    # A window's tokens reach nearly every expert of a block, so its replay reads the whole block.
    reached = 1.0 - (1.0 - o.experts_used / o.experts) ** o.window
    block_read = (o.attention_weights + (o.experts * reached + 1) * expert) * o.bytes_per_weight
    block_pass_s = max(2.0 * block_active * o.window / o.gpu_flops, block_read / o.gpu_bandwidth)
    head_s = max(o.vocabulary * o.width * 2.0 * o.window / o.gpu_flops,
                 o.vocabulary * o.width * o.bytes_per_weight / o.gpu_bandwidth)
    tensors = o.layers * o.tensors_per_block
    fast_s = tensors * o.types * windows * block_pass_s
    # Two anchors to the head on half of the windows; the mean suffix is half of the model.
    full_s = tensors * 2 * windows / 2 * (o.layers / 2 * block_pass_s + head_s)
    outside_s = o.types * windows * (o.layers * block_pass_s + 2 * head_s)
    source_s = 2 * windows * (o.layers * block_pass_s + head_s)
    replay_s = (fast_s + full_s + outside_s + source_s) / gpus
    quantize_s = weights * o.types / (o.quantize_rate * o.host_cores * gpus)
    # Every change goes to the GPU once, in its new type (about a quarter of the source's bytes on average).
    upload = weights * o.types * o.bytes_per_weight / 4
    upload_s = upload / gpus / o.host_link
    # Weights reach a GPU once where all of them stay; otherwise once for the source's own replay, divided among the ranks
    # of a machine, and once for each wave of variants that travel to the head together.
    wave_bytes = 0.25 * o.gpu_memory
    waves = math.ceil(tensors * 2 * windows / 2 * state / gpus / wave_bytes)
    streamed = source_bytes * (1 if resident else 1 + waves)
    stream_s = streamed / o.host_link
    # The file is read once by a machine that has memory for it, and each time by one that has not.
    ranks = gpus / machines
    disk_bytes = source_bytes * (1 if o.host_memory * 0.9 >= source_bytes else ranks * (1 + waves))
    disk_s = disk_bytes / o.disk
    wall_s = max(replay_s + max(stream_s, disk_s), quantize_s, upload_s)
    rows = tensors * (o.types + 2)
    return {
        "gpus": gpus,
        "weights": weights,
        "active": active,
        "source_bytes": source_bytes,
        "resident": resident,
        "largest_block_bytes": block * o.bytes_per_weight,
        "largest_tensor_bytes": o.experts * o.width * o.expert_width * o.bytes_per_weight,
        "state_bytes": state,
        "shared_state_bytes": (o.layers + 1) * windows * state,
        "replay_s": replay_s,
        "quantize_s": quantize_s,
        "upload_s": upload_s,
        "waves": waves,
        "streamed_bytes": streamed,
        "stream_s": stream_s,
        "disk_bytes": disk_bytes * machines,
        "disk_s": disk_s,
        "messages_bytes": rows * windows * 8 * 6,
        "wall_h": wall_s / 3600.0,
        "cost": wall_s / 3600.0 * gpus * o.price,
        "experts_share": of_experts / weights,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, what in ASSUMPTIONS:
        parser.add_argument(f"--{name}", type=float, default=float(value), help=f"{what} ({value:g})")
    parser.add_argument("--gpus", default="1,8,64")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plans = [plan(options, int(count)) for count in options.gpus.split(",")]
    if options.json:
        print(json.dumps(plans, indent=2))
        return
    first = plans[0]
    print(f"{first['weights'] / 1e9:.0f} billion weights, {first['active'] / 1e9:.1f} active; source {first['source_bytes'] / 1e9:.0f} GB, "
          f"a block {first['largest_block_bytes'] / 1e9:.1f} GB, its largest tensor {first['largest_tensor_bytes'] / 1e9:.2f} GB; "
          f"state of a window {first['state_bytes'] / 1e6:.1f} MB, of all windows at all blocks "
          f"{first['shared_state_bytes'] / 1e9:.1f} GB")
    print("| GPUs | weights | to each GPU | read from disk | replays | quantizing | wall clock | price |")
    print("|---|---|---|---|---|---|---|---|")
    for each in plans:
        print(f"| {each['gpus']} | {'resident' if each['resident'] else 'streamed'} | {each['streamed_bytes'] / 1e12:.1f} TB, "
              f"{each['stream_s'] / 60:.1f} min | {each['disk_bytes'] / 1e12:.1f} TB, {each['disk_s'] / 60:.1f} min | "
              f"{each['replay_s'] / 60:.1f} min | {each['quantize_s'] / 3600:.1f} h | {each['wall_h']:.1f} h | {each['cost']:.0f} |")


if __name__ == "__main__":
    main()
