"""What grammars know of a model's tokens: what llama.cpp says, whether it was read from the file or asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.engines.llama import grammar_vocab, vocabulary
from edged.engines.llama.constraint import Constraint, Grammars
from edged.engines.llama.grammar_vocab import GrammarVocabulary
from edged.engines.llama.vocabulary import Vocabulary
from edged.errors import ModelUnavailable
from tests.support.vocabularies import SENTENCEPIECE, Words, model_path, write_file

pytestmark = pytest.mark.model

MODELS = ("smollm2-135m-instruct-q4_1", "qwen2.5-coder-0.5b-instruct-q4_k_m")


@pytest.fixture(params=[MODELS[0], "sentencepiece"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "sentencepiece":
        return write_file(tmp_path / "m.gguf", SENTENCEPIECE)
    return model_path(request.param)


@pytest.fixture
def words(path: Path) -> Iterator[Any]:
    loaded = Words(path)
    yield loaded
    loaded.close()


def texts(words: Vocabulary) -> list[bytes]:
    data = words.data.tobytes()
    ends = np.cumsum(words.lengths).tolist()
    return [data[end - length : end] for end, length in zip(ends, words.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("path", [*MODELS, "sentencepiece"], indirect=True)
def test_all_tokens_are_those_of_llama_cpp(path: Path, words: Any) -> None:
    """Read from the file, or asked for at once: for every token what llama.cpp says of it alone."""
    read = vocabulary.from_file(path)
    assert read is not None
    proven, asked = vocabulary.proof(read, words), vocabulary.from_llama(words)
    assert proven is not None
    tokens = range(words.n_vocab)
    expected = [vocabulary.piece_of(words, token) for token in tokens]
    assert texts(asked) == expected
    assert texts(proven) == expected
    assert asked.control.tolist() == [words.is_control(token) for token in tokens]
    with_text = asked.lengths > 0  # without one it is no matter
    assert (proven.control == asked.control)[with_text].all()
    ends = [token for token in tokens if words.is_eog(token)]
    assert ends
    assert vocabulary.ends(asked, words).tolist() == vocabulary.ends(proven, words).tolist() == ends


def spoil(read: Vocabulary, how: str) -> Vocabulary:
    """A vocabulary that is not quite the model's."""
    pieces = texts(read)
    at = next(i for i in range(len(pieces) - 2, 0, -1) if len(pieces[i]) > 1 and len(pieces[i + 1]) > 1)
    if how == "a letter":
        pieces[at] = bytes([pieces[at][0] ^ 1]) + pieces[at][1:]
    elif how == "a boundary":
        pieces[at], pieces[at + 1] = pieces[at] + pieces[at + 1][:1], pieces[at + 1][1:]
    elif how == "an order":
        pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
    elif how == "an end":
        pieces[at + 1] += b"x"
    data = np.frombuffer(b"".join(pieces), np.uint8)
    return Vocabulary(
        data, np.array([len(p) for p in pieces]), read.control, pieces.index(b"a") if how == "the end" else read.end
    )


@pytest.mark.parametrize("how", ["a letter", "a boundary", "an order", "an end", "the end"])
def test_what_is_not_quite_the_models_is_not_proven(path: Path, words: Any, how: str) -> None:
    """One token's text, the place where one ends, two that changed places, the token that ends a text."""
    read = vocabulary.from_file(path)
    assert read is not None
    assert vocabulary.proof(spoil(read, how), words) is None


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "none"])
def test_a_family_that_cannot_be_read_is_left_to_llama_cpp(tmp_path: Path, model: str) -> None:
    assert vocabulary.from_file(write_file(tmp_path / "m.gguf", SENTENCEPIECE, model=model)) is None


def test_a_damaged_file_is_left_to_llama_cpp(tmp_path: Path) -> None:
    """It is llama.cpp that says what is wrong with it."""
    file = write_file(tmp_path / "m.gguf", SENTENCEPIECE)
    file.write_bytes(file.read_bytes()[:-40])
    assert vocabulary.from_file(file) is None
    assert vocabulary.from_file(tmp_path / "none.gguf") is None
    assert vocabulary.from_file(write_file(file, SENTENCEPIECE, end=99_999)) is None


def constraint(path: Path, words: Any, grammar: str) -> Iterator[Constraint]:
    """Of a vocabulary that was begun before the model, and of one that was not."""
    for begun in (GrammarVocabulary(path), None):
        grammars = Grammars(words, begun)
        yield grammars.constraint(grammar)
        grammars.clear()


def test_forced_text_is_written_as_the_model_writes_it(path: Path, words: Any) -> None:
    """In the tokens the model's own tokenizer gives it in the middle of a text: none adds a space in front."""
    for found in constraint(path, words, 'start: "ab hello" /[0-9]/'):
        forced = found.forced()
        assert b"".join(vocabulary.piece_of(words, token) for token in forced) == b"ab hello"
        assert forced == words.tokenize("}ab hello", special=False)[len(words.tokenize("}", special=False)) :]
        ids = found.allowed().ids.tolist()
        digits = {b"%d" % i for i in range(10)}
        assert {vocabulary.piece_of(words, token) for token in ids} == digits
        found.accept(ids[0])
        assert found.complete


@pytest.mark.parametrize("path", [*MODELS, "sentencepiece"], indirect=True)
def test_every_end_is_allowed_at_the_end_and_nothing_that_is_no_text(path: Path, words: Any) -> None:
    """A control token is never part of a text, also where the file takes it for one; all ends do."""
    for found in constraint(path, words, "start: /(.|\\n)*/"):
        assert found.forced() == []
        allowed = np.zeros(words.n_vocab, np.bool_)
        allowed[found.allowed().ids] = True
        for token in range(words.n_vocab):
            if words.is_control(token) or words.is_eog(token):
                assert allowed[token] == words.is_eog(token), token
        assert allowed[[token for token in range(words.n_vocab) if vocabulary.piece_of(words, token) == b"a"]].all()


def test_a_vocabulary_that_is_not_proven_is_asked_for(path: Path, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file seemed to say is not used."""
    read = vocabulary.from_file(path)
    assert read is not None
    wrong = spoil(read, "a letter")
    monkeypatch.setattr(vocabulary, "from_file", lambda _: wrong)
    found = GrammarVocabulary(path)
    found.bind(words)
    assert found.tokenizer.n_vocab == words.n_vocab
    grammars = Grammars(words, found)
    forced = grammars.constraint('start: "ab hello" /[0-9]/').forced()
    assert b"".join(vocabulary.piece_of(words, token) for token in forced) == b"ab hello"
    grammars.clear()


def test_a_text_that_grows_together_with_what_is_before_it_is_written_byte_by_byte(
    path: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as the model would, but nothing is lost or doubled."""
    monkeypatch.setattr(grammar_vocab, "_in_the_middle", lambda native, sentinel, text: None if len(text) > 1 else [
        token for token in range(native.n_vocab) if vocabulary.piece_of(native, token) == text.encode()
    ][-1:])  # fmt: skip
    for found in constraint(path, words, 'start: "ab h\u00e9llo" /[0-9]/'):
        forced = found.forced()
        assert [vocabulary.piece_of(words, t) for t in forced] == [bytes([b]) for b in "ab h\u00e9llo".encode()]


def test_a_vocabulary_without_a_way_to_write_texts_forces_nothing(
    path: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks still let the text through."""
    monkeypatch.setattr(grammar_vocab, "_sentinel", lambda native: None)
    for found in constraint(path, words, 'start: "ab"'):
        assert found.forced() == []
        assert {vocabulary.piece_of(words, token) for token in found.allowed().ids.tolist()} <= {b"a", b"ab"}


def test_a_vocabulary_whose_model_never_loads_ends_with_it(path: Path) -> None:
    found = GrammarVocabulary(path)
    found.close()
    found.close()
    found._thread.join(5)
    assert not found._thread.is_alive()
    with pytest.raises(ModelUnavailable):
        _ = found.tokenizer
