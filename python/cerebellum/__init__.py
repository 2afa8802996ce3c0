"""Cerebellum from Python: measure what a model loses by quantization, allocate, build and verify.

Every function releases the GIL while it works. `progress` is called as progress(stage, share, detail), share being None
where it is not known; an exception that it raises, or Ctrl-C, stops the work, and everything measured so far is kept in the
journal. Errors are Error, and UsageError where an argument is not usable; warnings are Python's.

Data frames need pandas (pip install 'cerebellum[pandas]'); everything else does without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from ._native import Error, Interrupted, UsageError, __version__, llama_version

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Error", "Interrupted", "Journal", "ModelInfo", "Recipe", "Tensor", "UsageError", "VerifiedFile", "__version__",
    "ablate", "allocate", "build", "inspect", "llama_version", "quantize", "verify",
]

AnyPath = str | PathLike[str]
Progress = Callable[[str, float | None, str], object]


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install 'cerebellum[pandas]'") from error
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. `shape` begins with the row length."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    bpw: float


@dataclass(frozen=True)
class ModelInfo:
    """What a GGUF's header says."""

    path: Path
    architecture: str
    fingerprint: str
    bytes: int
    weights: int
    bpw: float
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    def frame(self) -> pandas.DataFrame:
        """One row for each tensor."""
        return _frame([vars(tensor) for tensor in self.tensors])


def inspect(file: AnyPath) -> ModelInfo:
    """Reads the header of a GGUF; of a split model name the first file."""
    read = json.loads(_native.inspect(file))
    tensors = tuple(Tensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in read.pop("tensors"))
    return ModelInfo(path=Path(file), tensors=tensors, **read)


@dataclass(frozen=True)
class Journal:
    """Measurements in a file."""

    path: Path

    def __init__(self, path: AnyPath) -> None:
        object.__setattr__(self, "path", Path(path))

    def identity(self) -> dict[str, str]:
        """What its figures depend on: model, text, context, versions."""
        result: dict[str, str] = json.loads(_native.identity(self.path))
        return result

    def damage_rows(self) -> list[dict[str, Any]]:
        """What each tensor loses in each type: as damage(), without pandas."""
        result: list[dict[str, Any]] = json.loads(_native.damage(self.path))
        for row in result:
            row["kld_low"], row["kld_high"] = row.pop("kld_95")
            for name, value in row.items():  # JSON has no infinity
                if value is None:
                    row[name] = math.inf
        return result

    def damage(self) -> pandas.DataFrame:
        """What each tensor loses in each type: tensor, type, tier, kld (nats per token) with its standard error and 95 %
        interval, infinite where a single window was scored; delta_nll, top1_agree and local_energy where they were
        measured."""
        return _frame(self.damage_rows())

    def windows(self) -> pandas.DataFrame:
        """The raw figures: one row for each measurement and window of text, sums over the window's scored positions."""
        return _frame(json.loads(_native.windows(self.path)))

    def mixes(self) -> pandas.DataFrame:
        """Whole mixes of types that were measured: part of the text, kind, figures, and the types that differ from the
        source."""
        return _frame(json.loads(_native.mixes(self.path)))


@dataclass(frozen=True)
class Recipe:
    """A type for each tensor, and what is known of it."""

    types: dict[str, str]
    file_bytes: int
    predicted_kld: float | None
    provenance: dict[str, str]
    json: str

    @staticmethod
    def parse(text: str) -> Recipe:
        """From the text of a recipe.json."""
        read = json.loads(text)
        return Recipe(types=read["types"], file_bytes=read.get("file_bytes", 0),
                      predicted_kld=read.get("predicted_kld"), provenance=read.get("provenance", {}), json=text)

    @staticmethod
    def load(path: AnyPath) -> Recipe:
        return Recipe.parse(Path(path).read_text(encoding="utf-8"))

    def save(self, path: AnyPath) -> None:
        Path(path).write_text(self.json, encoding="utf-8")

    def frame(self) -> pandas.DataFrame:
        """One row for each tensor: tensor, type."""
        return _frame([{"tensor": tensor, "type": type_} for tensor, type_ in self.types.items()])


def _settings(model: AnyPath, journal: AnyPath | None, text: Any, tokens: int, context: int, threads: int, seed: int,
              types: Iterable[str], tensors: Iterable[str], full: bool, device: str, memory: str,
              device_memory: str, effort: str = "default") -> _native.Settings:
    settings = _native.Settings()
    settings.model = model
    settings.journal = _journal_of(model, journal, effort)
    settings.effort = effort
    if isinstance(text, Mapping):
        settings.domains, settings.texts = list(text.keys()), list(text.values())
    elif isinstance(text, (str, PathLike)):
        settings.texts = [text]
    else:
        settings.texts = list(text)
    settings.tokens, settings.context, settings.threads, settings.seed = tokens, context, threads, seed
    settings.types, settings.tensors, settings.full = list(types), list(tensors), full
    settings.device, settings.memory, settings.device_memory = device, memory, device_memory
    return settings


def _journal_of(model: AnyPath, journal: AnyPath | None, effort: str = "default") -> AnyPath:
    made = "" if effort == "default" else f".{effort}"
    return f"{Path(model).stem}{made}.cerebellum.db" if journal is None else journal


def _pins(pins: Mapping[str, str]) -> list[str]:
    return [f"{glob}={type_}" for glob, type_ in pins.items()]


def ablate(model: AnyPath, *, journal: AnyPath | None = None,
           text: AnyPath | Iterable[AnyPath] | Mapping[str, AnyPath] = (), tokens: int = 0, context: int = 0,
           threads: int = 0, seed: int = 1, types: Iterable[str] = (), tensors: Iterable[str] = (), full: bool = False,
           device: str = "", memory: str = "", device_memory: str = "", effort: str = "default",
           progress: Progress | None = None) -> Journal:
    """Measures what each tensor loses in each type. What the journal holds already is not measured again.

    The arguments are the options of `cerebellum ablate`. `text` is a file, several, or a mapping from domains to files;
    without one the model writes its own. `journal` is by default in the current folder, named after the model. `effort` is
    "quick", "default" or "thorough"; it says how many `tokens` are measured on unless you do.
    """
    settings = _settings(model, journal, text, tokens, context, threads, seed, types, tensors, full, device, memory,
                         device_memory, effort)
    _native.ablate(settings, progress)
    return Journal(settings.journal)


def allocate(model: AnyPath, *, journal: AnyPath | Journal | None = None, size: str = "", max_kld: float = 0.0,
             pins: Mapping[str, str] | None = None) -> Recipe:
    """Chooses a type for each tensor, from the journal's measurements: the least damage within `size` ("4GB",
    "4.25bpw"), or the smallest file with at most `max_kld`. `pins` maps globs of tensors to types."""
    path = journal.path if isinstance(journal, Journal) else _journal_of(model, journal)
    return Recipe.parse(_native.allocate(model, path, size, max_kld, _pins(pins or {})))


def build(model: AnyPath, recipe: Recipe | AnyPath, output: AnyPath, *, journal: AnyPath | Journal | None = None,
          imatrix: AnyPath | None = None, threads: int = 0, overwrite: bool = False,
          progress: Progress | None = None) -> int:
    """Writes the file that a recipe describes; returns its size in bytes. The importance matrix comes from the file
    `imatrix`, or else from the journal."""
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    path = journal.path if isinstance(journal, Journal) else journal
    return _native.build(model, loaded.json, output, path, imatrix, threads, overwrite, progress)


@dataclass(frozen=True)
class VerifiedFile:
    """A file against its source, on text that no choice was made on. KLD in nats per token, with standard errors."""

    file: str
    bytes: int
    bpw: float
    kld: float
    kld_error: float
    perplexity: float
    perplexity_error: float
    delta_nll: float
    delta_nll_error: float
    top1_agree: float
    tokens: float
    predicted_kld: float | None = None
    calibrated_kld: float | None = None
    calibrated_kld_error: float | None = None


def verify(model: AnyPath, files: Iterable[AnyPath], *, journal: AnyPath | None = None,
           text: AnyPath | Iterable[AnyPath] | Mapping[str, AnyPath] = (), tokens: int = 0, context: int = 0,
           threads: int = 0, seed: int = 1, progress: Progress | None = None) -> list[VerifiedFile]:
    """Compares built files with their source. With the settings of an earlier run, and its journal, the text is the part
    that no choice was made on."""
    settings = _settings(model, journal, text, tokens, context, threads, seed, (), (), False, "", "", "")
    return [VerifiedFile(**row) for row in json.loads(_native.verify(settings, list(files), progress))]


def quantize(model: AnyPath, output: AnyPath, *, size: str = "", max_kld: float = 0.0,
             pins: Mapping[str, str] | None = None, journal: AnyPath | None = None,
             text: AnyPath | Iterable[AnyPath] | Mapping[str, AnyPath] = (), tokens: int = 0, context: int = 0,
             threads: int = 0, seed: int = 1, types: Iterable[str] = (), device: str = "", memory: str = "",
             device_memory: str = "", effort: str = "default", overwrite: bool = False, compare: str = "auto",
             progress: Progress | None = None) -> dict[str, Any]:
    """The whole job: measure, allocate, build, verify, and compare with the stock presets: those that may turn out to be
    better (`compare` "auto"), or "all". Returns what results.json holds."""
    settings = _settings(model, journal, text, tokens, context, threads, seed, types, (), False, device, memory,
                         device_memory, effort)
    result: dict[str, Any] = json.loads(
        _native.quantize(settings, output, size, max_kld, _pins(pins or {}), overwrite, compare, progress))
    return result
