"""What the files of models turned out to be when somebody looked into them, for as long as they stay as they were."""

from __future__ import annotations

from pathlib import Path

from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.models.catalog import ModelFile
from edged.types import ModelSpec

Identity = tuple[int, ...]  # changes whenever a file does


class Examined:
    """Remembers why files cannot be loaded."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Identity, str | None]] = {}

    def known(self, spec: ModelSpec) -> str | None:
        """Why a file cannot be loaded, if it was examined and has not changed since; one stat(2)."""
        if spec.path not in self._known:
            return None
        identity, problem = self._known[spec.path]
        return problem if identity == _identity(spec) else None

    def examine(self, spec: ModelSpec, file: ModelFile | None) -> str | None:
        """Look into a file that is here: why it cannot be loaded, or None. Blocks; a file that was not examined before
        takes up to a tenth of a second.

        Args:
            file: with the sizes of all that belongs to it, where they are known.
        """
        identity = _identity(spec)
        if spec.path not in self._known or self._known[spec.path][0] != identity:
            self._known[spec.path] = identity, _problem(spec, file)
        return self._known[spec.path][1]


def identity_of(path: Path) -> Identity:
    """What changes whenever a file does; () where there is none. Reading 500 MB would take 10 s from a card."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _identity(spec: ModelSpec) -> Identity:
    """Of the model's file and of its adapter's."""
    return (*identity_of(Path(spec.path)), *(identity_of(Path(spec.adapter)) if spec.adapter else ()))


def _problem(spec: ModelSpec, file: ModelFile | None) -> str | None:
    for part in file.files if file else ():
        path = Path(spec.path).with_name(part.name)
        if path.is_file() and part.bytes is not None and path.stat().st_size != part.bytes:
            return f"{path} has {path.stat().st_size} bytes instead of {part.bytes}"
    try:
        registry.kind(spec.engine).check_file(Path(spec.path))
    except ModelUnavailable as error:
        return error.message
    try:
        if spec.adapter:
            registry.kind(spec.engine).dialect_of(Path(spec.adapter))
    except ModelUnavailable as error:
        return f"its adapter {spec.adapter}: {error.message}"
    return None
