"""Tests of the installed package on the embedded model: pip install '.[test]' && pytest."""

import json
import threading
import time
from pathlib import Path

import pytest

import cerebellum

MODEL = Path(__file__).resolve().parents[2] / "models" / "wikicode-6.8M-f16.gguf"
SMALL = {"tokens": 256, "context": 128, "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cerebellum")


@pytest.fixture(scope="module")
def journal(folder):
    """A few tensors in two types."""
    return cerebellum.ablate(MODEL, journal=folder / "small.db", types=["q2_K", "q4_K"],
                             tensors=["blk.1.ffn_*", "blk.2.attn_q*"], **SMALL)


def test_version_is_that_of_the_sources():
    text = (MODEL.parents[1] / "CMakeLists.txt").read_text()
    assert f"project(cerebellum VERSION {cerebellum.__version__} " in text


def test_inspect():
    info = cerebellum.inspect(MODEL)
    assert info.architecture == "llama"
    assert info.bytes == MODEL.stat().st_size
    assert sum(tensor.bytes for tensor in info.tensors) < info.bytes
    assert info.metadata["general.architecture"] == "llama"
    frame = info.frame()
    assert len(frame) == len(info.tensors)
    assert set(frame.columns) == {"name", "type", "shape", "bytes", "bpw"}


def test_errors_are_exceptions(tmp_path):
    with pytest.raises(cerebellum.Error, match="no-such-file.gguf"):
        cerebellum.inspect(tmp_path / "no-such-file.gguf")
    with pytest.raises(cerebellum.UsageError, match="q9_Z"):
        cerebellum.ablate(MODEL, journal=tmp_path / "j.db", types=["q9_Z"])
    with pytest.raises(cerebellum.UsageError, match="either"):
        cerebellum.allocate(MODEL, journal=tmp_path / "j.db")
    assert issubclass(cerebellum.UsageError, cerebellum.Error)


def test_damage(journal):
    frame = journal.damage()
    assert set(frame["type"]) == {"q2_K", "q4_K"}
    assert len(frame) == 8
    wide = frame.pivot(index="tensor", columns="type", values="kld")
    assert (wide["q2_K"] > wide["q4_K"]).all()
    assert (frame["kld_low"] <= frame["kld"]).all() and (frame["kld"] <= frame["kld_high"]).all()
    assert frame["kld_error"].dtype == float
    windows = journal.windows()
    assert set(windows["tier"]) == {"fast", "full"}
    assert windows.groupby(["tensor", "type", "tier"]).size().min() >= 1
    assert journal.identity()["model"] == cerebellum.inspect(MODEL).fingerprint


def test_nothing_is_measured_twice(journal):
    stages = []
    started = time.monotonic()
    cerebellum.ablate(MODEL, journal=journal.path, types=["q2_K", "q4_K"], tensors=["blk.1.ffn_*", "blk.2.attn_q*"],
                      progress=lambda stage, share, detail: stages.append(stage), **SMALL)
    assert time.monotonic() - started < 60
    assert all(isinstance(stage, str) for stage in stages)


def test_allocate_build_verify(journal, folder):
    source = cerebellum.inspect(MODEL)
    recipe = cerebellum.allocate(MODEL, journal=journal, size=f"{source.bytes - 300_000}", pins={"blk.2.attn_q": "q4_K"})
    assert recipe.types["blk.2.attn_q.weight"] == "q4_K"
    assert recipe.file_bytes <= source.bytes - 300_000
    assert recipe.frame().set_index("tensor")["type"]["blk.2.attn_q.weight"] == "q4_K"
    recipe.save(folder / "recipe.json")
    assert cerebellum.Recipe.load(folder / "recipe.json") == recipe

    shares = []
    output = folder / "small.gguf"
    size = cerebellum.build(MODEL, recipe, output, journal=journal, threads=1,
                            progress=lambda stage, share, detail: shares.append(share))
    assert size == output.stat().st_size == recipe.file_bytes
    assert shares[-1] == 1.0
    built = {tensor.name: tensor.type for tensor in cerebellum.inspect(output).tensors}
    assert all(built[name] == type_ for name, type_ in recipe.types.items())
    with pytest.raises(cerebellum.Error, match="small.gguf"):
        cerebellum.build(MODEL, recipe, output, journal=journal, threads=1)

    (verified,) = cerebellum.verify(MODEL, [output], journal=journal.path, **SMALL)
    assert 0 < verified.kld < 1
    assert verified.bytes == size


def test_other_threads_run_meanwhile(folder):
    """The GIL is released: a thread that counts goes on counting while the native code works."""
    counted = 0
    done = threading.Event()

    def count():
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    started = time.monotonic()
    cerebellum.ablate(MODEL, journal=folder / "gil.db", types=["q2_K"], tensors=["blk.3.attn_q*"], **SMALL)
    seconds = time.monotonic() - started
    done.set()
    thread.join()
    assert counted > 5 * seconds


def test_a_callback_may_stop_the_work(folder):
    class Enough(Exception):
        pass

    def stop(stage, share, detail):
        raise Enough(stage)

    with pytest.raises(Enough):
        cerebellum.ablate(MODEL, journal=folder / "stopped.db", types=["q2_K"], progress=stop, **SMALL)
    # The next call is not stopped by it.
    cerebellum.ablate(MODEL, journal=folder / "stopped.db", types=["q2_K"], tensors=["blk.0.attn_q*"], **SMALL)


@pytest.mark.slow
def test_quantize(folder):
    output = folder / "whole.gguf"
    result = cerebellum.quantize(MODEL, output, size="3MB", journal=folder / "whole.db", types=["q2_K", "q3_K", "q4_K"],
                                 **SMALL)
    assert output.stat().st_size <= 3_000_000
    assert result["file_bytes"] == output.stat().st_size
    stored = json.loads(output.with_suffix(".results.json").read_text())
    assert stored["delivered"] == result["delivered"]
    mixes = cerebellum.Journal(folder / "whole.db").mixes()
    assert {"selection"} <= set(mixes["part"])
