"""What bench/real.py chooses and prints; no model is run."""

import pathlib
import sys
import tempfile
import types
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))
import quality  # noqa: E402
import real  # noqa: E402
from judge import JudgeError  # noqa: E402

SIZES = {"IQ1_S": 1000, "IQ2_S": 2000, "Q2_K": 3000, "IQ3_XXS": 4000, "Q3_K_M": 5000, "Q4_K_M": 9000}


class Stock:
    """Plans of a source of 20,000 bytes of data and 50 of header."""

    def __init__(self, folder):
        self.source = pathlib.Path(folder) / "source.gguf"
        self.source.write_bytes(b"\0" * 20050)

    def plan(self, preset):
        if preset not in SIZES:
            raise JudgeError("rows do not fit")
        return types.SimpleNamespace(name=preset, data_bytes=SIZES[preset], source_data_bytes=20000)


def row(name, kld, kind="preset"):
    return {"name": name, "kind": kind, "kld": kld and {"mean": kld, "error": 0.001}}


class Real(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.stock = Stock(scratch.name)
        silent = unittest.mock.patch.object(quality, "say")
        silent.start()
        self.addCleanup(silent.stop)
        self.budget = 5000 + 50 + real.HEADER_BYTES

    def chosen(self, rows, nearest=2):
        plans, n_fitting = real.promising(self.stock, {"files": rows}, self.budget, nearest)
        self.assertEqual(n_fitting, 5)
        return [plan.name for plan in plans]

    def test_judges_the_largest_and_the_favourite(self):
        rows = [row("source", 0.0, "source"), row("ours", 0.1, "ours"), row("IQ2_S", 0.2), row("Q3_K_M", 0.4), row("Q4_K_M", 0.1)]
        self.assertEqual(self.chosen(rows), ["Q3_K_M", "IQ3_XXS", "IQ2_S"])
        rows[3] = row("Q3_K_M", 0.15)
        self.assertEqual(self.chosen(rows), ["Q3_K_M", "IQ3_XXS"])

    def test_does_without_figures_of_stock_files(self):
        self.assertEqual(self.chosen([row("IQ2_S", None)], nearest=1), ["Q3_K_M"])
        self.assertEqual(self.chosen([]), ["Q3_K_M", "IQ3_XXS"])

    def test_table_of_stages_adds_up(self):
        stages = [{"name": "measuring", "wall_s": 60.0, "device_busy_s": 40.0, "quantize_s": 70.5},
                  {"name": "build", "wall_s": 5.25}]
        lines = [line.split() for line in real.stage_rows(stages, 70.0)]
        self.assertEqual(lines[1], "measuring 60.0 s 40.0 s 70.5 s".split())
        self.assertEqual(lines[2], "build 5.2 s".split())
        self.assertEqual(lines[3], "in no stage 4.8 s".split())
        self.assertEqual(lines[4], "whole command 70.0 s 40.0 s 70.5 s".split())


if __name__ == "__main__":
    unittest.main()
