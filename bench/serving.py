#!/usr/bin/env python3
"""What a built file does in llama.cpp's server on one NVIDIA GPU, as model cards quote it: tokens/s of prompts and of generating, device
memory with four slots at work, the largest context whose cache (q8_0) still fits; and what `cerebellum memory` says of it beforehand.

    bench/serving.py --bin build-gpu/bin --cerebellum build-gpu/bin/cerebellum --model mix.gguf --limit 12GB --json serving.json

Memory is what nvidia-smi says above what was used before. Needs nothing but Python.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import threading
import time
import urllib.request

CACHE = ["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"]
UNITS = {"GB": 1000**3, "GiB": 1024**3, "MB": 1000**2, "MiB": 1024**2}


def used_memory():
    said = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True)
    return int(said.stdout.split()[0]) * 1024**2


class Server:
    """llama-server, from its start to its end; `buffers` is what it says to have allocated, in MiB by device and purpose."""

    def __init__(self, options, slots, context):
        self.url = f"http://127.0.0.1:{options.port}"
        self.log = pathlib.Path(options.log)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([options.bin / "llama-server", "-m", options.model, "--port", str(options.port), "-ngl", "999", "-np", str(slots),
                                             "-c", str(context), "--cache-ram", "0", "-lv", "4", "-t", str(options.threads), *CACHE], stdout=log, stderr=log)

    def __enter__(self):
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"llama-server ended with {self.process.returncode}: {self.log.read_text()[-400:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def buffers(self):
        found = re.findall(r"(\S+)\s+((?:model|KV|RS|compute|output)) buffer size =\s+([\d.]+) MiB", self.log.read_text())
        return [{"device": device, "what": what, "MiB": float(size)} for device, what, size in found]

    def complete(self, prompt, count):
        body = json.dumps({"prompt": prompt, "n_predict": count, "ignore_eos": True, "cache_prompt": False, "temperature": 0}).encode()
        request = urllib.request.Request(self.url + "/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["timings"]


class Peak:
    """The most device memory in use while it is open."""

    def __enter__(self):
        self.most, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.is_set():
            self.most = max(self.most, used_memory())
            self.over.wait(0.2)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.most = max(self.most, used_memory())


def planned(options, slots, context):
    """MiB on the first GPU by purpose, as `cerebellum memory` has them without loading the model."""
    said = json.loads(run_tool([options.cerebellum, "memory", options.model, "--ctx", context, "--kv", "q8_0", "--parallel", slots, "--gpu-layers", -1, "--json"]))
    device = next(device for device in said[0]["devices"] if device["device"] != "host")
    return {what: device[what] / 1024**2 for what in ("weights", "cache", "compute", "total")}


def allocated(buffers):
    """The same as the server reported it."""
    purposes = {"model": "weights", "KV": "cache", "RS": "cache", "compute": "compute", "output": "compute"}
    sums = dict.fromkeys(("weights", "cache", "compute"), 0.0)
    for buffer in buffers:
        if not re.search("CPU|Host", buffer["device"]):
            sums[purposes[buffer["what"]]] += buffer["MiB"]
    return {**sums, "total": sum(sums.values())}


def text_of(length, seed):
    return "".join(chr(97 + (i * i * 7 + i * 31 + seed * 13) % 26) if i % 6 else " " for i in range(length))


def run_tool(command):
    print("+", *command, flush=True)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of llama.cpp's tools, built with CUDA and its flash attention")
    parser.add_argument("--cerebellum", type=pathlib.Path, help="the program, to compare its account of memory with the server's")
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", default="12GB", help="device memory that the largest context must fit in")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--slot-context", type=int, default=8192)
    parser.add_argument("--prompt", type=int, default=2048, help="bytes of each request's prompt")
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--probe", type=int, nargs=2, default=[8192, 65536], help="contexts from whose memory the largest is worked out")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--log", default="serving.log")
    parser.add_argument("--threads", type=int, default=4, help="of the server, for what stays on the CPU")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("serving.json"))
    options = parser.parse_args()
    amount, unit = re.fullmatch(r"([\d.]+)(\w+)", options.limit).groups()
    limit = int(float(amount) * UNITS[unit])
    before = used_memory()
    result = {"model bytes": pathlib.Path(options.model).stat().st_size, "limit": limit, "used before": before}

    def keep(key, value):
        result[key] = value
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        print(key, json.dumps(value), flush=True)

    with Server(options, options.slots, options.slots * options.slot_context) as server:
        loaded = used_memory() - before
        # One request alone, then all slots at once.
        alone = server.complete(text_of(options.prompt, 0), options.generate)
        with Peak() as peak, concurrent.futures.ThreadPoolExecutor(options.slots) as requests:
            start = time.monotonic()
            timings = list(requests.map(lambda seed: server.complete(text_of(options.prompt, seed), options.generate), range(1, options.slots + 1)))
            seconds = time.monotonic() - start
        keep("server", {"slots": options.slots, "context": options.slots * options.slot_context, "loaded": loaded, "peak": peak.most - before,
                        "buffers": server.buffers(), "alone": {key: alone[key] for key in ("prompt_n", "prompt_per_second", "predicted_n", "predicted_per_second")},
                        "together": {"generated": sum(t["predicted_n"] for t in timings), "seconds": round(seconds, 2),
                                     "predicted_per_second each": [round(t["predicted_per_second"], 1) for t in timings]}})
    measured = {}
    for context in options.probe:
        with Server(options, 1, context) as server:
            measured[context] = used_memory() - before
            keep(f"one slot, context {context}", {"loaded": measured[context], "buffers": server.buffers()})
    (low, at_low), (high, at_high) = sorted(measured.items())
    per_token = (at_high - at_low) / (high - low)
    # Filling the cache takes no more memory; 64 MiB are left for what the driver adds.
    context = int((limit - 64 * 1024**2 - at_low) / per_token + low) // 256 * 256 if per_token > 0 else high
    with Server(options, 1, context) as server:
        with Peak() as peak:
            timings = server.complete(text_of(options.prompt, 9), 16)
        keep("largest context", {"context": context, "bytes a token": round(per_token), "peak": peak.most - before, "fits": peak.most - before <= limit,
                                 "buffers": server.buffers(), "prompt_per_second": timings["prompt_per_second"]})
    if options.cerebellum:
        rows = [(options.slots, options.slots * options.slot_context, result["server"]["buffers"]), (1, context, result["largest context"]["buffers"]),
                *((1, probe, result[f"one slot, context {probe}"]["buffers"]) for probe in options.probe)]
        keep("memory in MiB", [{"slots": slots, "context": tokens, "cerebellum memory": planned(options, slots, tokens), "llama-server": allocated(buffers)}
                               for slots, tokens, buffers in rows])
    keep("llama-bench", json.loads(run_tool([options.bin / "llama-bench", "-m", options.model, "-ngl", 999, "-fa", 1, "-ctk", "q8_0", "-ctv", "q8_0", "-p", "512,2048",
                                             "-n", 128, "-r", 3, "-o", "json"])))
    keep("llama-batched-bench", [line for line in run_tool([options.bin / "llama-batched-bench", "-m", options.model, "-ngl", 999, *CACHE, "-c", 4096, "-npp", 512,
                                                            "-ntg", 128, "-npl", "1,2,4"]).splitlines() if line.startswith("|")])


if __name__ == "__main__":
    main()
