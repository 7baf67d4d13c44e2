"""What a load has read is given back, and what is used in place stays."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from pathlib import Path

import pytest

from edged.engines.llama import drop_pages, gguf
from edged.errors import ModelUnavailable
from tests.support.real_model import model_path

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(path: Path) -> int:
    """Bytes of a file that are mapped and in memory here."""
    found = re.findall(
        rf"{re.escape(str(path.resolve()))}\n(?:.*\n)*?Rss: +(\d+) kB",
        Path("/proc/self/smaps").read_text(encoding="utf-8"),
    )
    return sum(int(size) * 1024 for size in found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the smallest model: other tests of the process may have the original mapped."""
    return Path(shutil.copyfile(model_path(), tmp_path_factory.mktemp("model") / "m.gguf"))


def touch(data: mmap.mmap) -> None:
    """Read a byte of each page."""
    assert data[::PAGE]


def test_all_but_the_embeddings_is_given_back_and_comes_again(model: Path) -> None:
    """Of the real file, mapped as llama.cpp does it."""
    path = model
    embeddings = next(t.size for t in gguf.header(path)[1] if t.name == drop_pages.EMBEDDINGS)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        touch(data)
        assert resident(path) >= path.stat().st_size
        before = bytes(data[-PAGE:])
        drop_pages.MappedPages(path).release()
        assert embeddings <= resident(path) < embeddings + 4 * PAGE
        assert bytes(data[-PAGE:]) == before


def test_load_gives_back_as_it_goes_on(model: Path) -> None:
    """Not with every tensor: a look at the mappings takes its time."""
    path = model
    step = drop_pages.EVERY_BYTES / path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages = drop_pages.MappedPages(path)
        touch(data)
        pages.loaded(0.9 * step)
        assert resident(path) >= path.stat().st_size
        pages.loaded(1.1 * step)
        assert resident(path) < path.stat().st_size // 2
        touch(data)
        pages.loaded(1.9 * step)
        assert resident(path) >= path.stat().st_size


def test_other_files_stay(tmp_path: Path) -> None:
    """Only the model's own pages go."""
    other = tmp_path / "other"
    other.write_bytes(bytes(8 * PAGE))
    with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        touch(data)
        drop_pages.MappedPages(model_path()).release()
        assert resident(other) == 8 * PAGE


def test_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    """As everywhere."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(ModelUnavailable, match="is no GGUF file"):
        drop_pages.MappedPages(path)
