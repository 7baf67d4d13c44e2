"""Embeddings as OpenAI documents them: the request, checked, and the answer. Pure.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from msgspec import Struct

from edged.types import JSON, Embeddings, EmbedJob, Format
from edged.wire import decode
from edged.wire.dialogue import BadParameter, convert
from edged.wire.values import checked

MAX_INPUTS = 2048  # as OpenAI bounds them; the size of the request bounds their length
FORMATS = ("float", "base64")
FLOAT_BYTES = 4


class Body(Struct, forbid_unknown_fields=True):
    """The whole request. Parts that are checked one by one are as they came."""

    model: str
    input: Any
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None  # of no effect: who asks


def parse(payload: bytes) -> tuple[EmbedJob, bool]:
    """(what is asked, whether vectors are wanted in base64).

    Raises:
        BadParameter: with the parameter and what is allowed.
        BadRequest, TooLarge: it is no JSON object, or nested too deep.
    """
    body = convert(checked(decode(payload, Format.JSON), "a JSON object with model and input"), Body, "")
    if body.encoding_format is not None and body.encoding_format not in FORMATS:
        raise BadParameter("encoding_format", f"{body.encoding_format!r}; allowed are {', '.join(FORMATS)}")
    if body.dimensions is not None and body.dimensions < 1:
        raise BadParameter("dimensions", f"{body.dimensions} is less than 1")
    job = EmbedJob(model=body.model, texts=_texts(body.input), dimensions=body.dimensions)
    return job, body.encoding_format == "base64"


def answer(model: str, made: Embeddings, *, as_base64: bool) -> JSON:
    """The list of embeddings. model: as the client named it."""
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, as_base64)}
        for i, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _texts(given: JSON) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise BadParameter("input", "is a string or a list of strings")
    if not texts:
        raise BadParameter("input", "is an empty list; at least one string is needed")
    if len(texts) > MAX_INPUTS:
        raise BadParameter("input", f"{len(texts)} of them; at most {MAX_INPUTS} are taken")
    for i, text in enumerate(texts):
        where = "input" if isinstance(given, str) else f"input[{i}]"
        if isinstance(text, int | list):
            raise BadParameter(
                "input", "token ids are not taken: each model has a vocabulary of its own; send the text"
            )
        if not isinstance(text, str):
            raise BadParameter(where, "is not a string")
        if not text:
            raise BadParameter(where, "is an empty string")
    return tuple(texts)


def _written(vector: bytes, as_base64: bool) -> JSON:
    if as_base64:  # float32, little-endian, as OpenAI's clients read it
        return base64.b64encode(vector).decode()
    return struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)
