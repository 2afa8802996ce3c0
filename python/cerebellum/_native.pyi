"""The native part; use the functions of the package itself."""

from collections.abc import Callable
from os import PathLike

Path = str | PathLike[str]
Progress = Callable[[str, float | None, str], object]

__version__: str
llama_version: str

class Error(Exception): ...
class UsageError(Error): ...
class Interrupted(Error): ...

class Settings:
    def __init__(self) -> None: ...
    model: Path
    journal: Path
    texts: list[Path]
    domains: list[str]
    types: list[str]
    tensors: list[str]
    tokens: int
    effort: str
    context: int
    threads: int
    seed: int
    full: bool
    device: str
    memory: str
    device_memory: str

def inspect(file: Path) -> str: ...
def ablate(settings: Settings, progress: Progress | None) -> str: ...
def allocate(model: Path, journal: Path, size: str, max_kld: float, pins: list[str]) -> str: ...
def build(
    model: Path, recipe: str, output: Path, journal: Path | None, imatrix: Path | None, threads: int, overwrite: bool,
    progress: Progress | None,
) -> int: ...
def verify(settings: Settings, files: list[Path], progress: Progress | None) -> str: ...
def quantize(
    settings: Settings, output: Path, size: str, max_kld: float, pins: list[str], overwrite: bool,
    compare: str, progress: Progress | None,
) -> str: ...
def damage(journal: Path) -> str: ...
def identity(journal: Path) -> str: ...
def windows(journal: Path) -> str: ...
def mixes(journal: Path) -> str: ...
