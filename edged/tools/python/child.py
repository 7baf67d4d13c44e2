"""The child's side of Python tools: a process that imports one module of the user's and calls its functions.

Run as a program (`python -P child.py CHANNEL RULES PARENT BYTES FILE_BYTES MODULE FUNCTION...`) in the folder of the
modules. It imports
nothing of edged, and of others only msgspec: what a tool weighs is what its author imports. A function's type hints are
its schema; the same hints check and convert the arguments of a call (JSON "north" into Bed.NORTH).

The channel is a socket, a frame on it four bytes of length (big endian) and a msgpack map. The child speaks first, with
`Hello`; then each `Invocation` is answered by one `Answer`. When the channel ends, so does the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import inspect
import io
import math
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, get_type_hints

import msgspec
from msgspec import Struct

HEAD = 4  # bytes of a frame's length
MAX_RESULT_BYTES = 64 * 1024  # of one result as JSON: as much as tools.sql reads; more does not fit a model's context
MAX_MESSAGE = 500  # characters of an error: the model reads it, and a message may hold half a file
MAX_TRACEBACK = 8000  # characters; the log shows its end, where the error is
KEY = "idempotency_key"  # the parameter that gets the identity of the step; the model does not see it
NICE = 5  # a quarter of the share of a thread of the daemon: its loop goes first, and a tool still gets on
OOM_SCORE = 800  # of 1000: where the board runs out of memory, the kernel ends a tool before the daemon
MAX_OPEN_FILES = 256  # far more than a function needs that closes what it opens
ALLOWED_HINTS = (  # what JSON can say and msgspec converts
    "allowed are str, int, float, bool, Literal, Enum, Decimal, date, time, datetime, timedelta, UUID, bytes (base64), "
    "list, set, tuple, dict, TypedDict, NamedTuple, dataclasses and Structs of these, and `| None`"
)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl.h
LANDLOCK_RESTRICT_SELF = 446  # the number of this system call, on all architectures


class Function(Struct, omit_defaults=True):
    """What a function says about itself; `problem` is why it cannot be a tool."""

    description: str = ""
    parameters: dict[str, dict[str, Any]] = {}
    problem: str = ""


class Hello(Struct, omit_defaults=True):
    """The child's first frame; `problem` is why the module cannot be used."""

    functions: dict[str, Function] = {}
    problem: str = ""
    traceback: str = ""


class Invocation(Struct):
    """A call. `key` is the same whenever the same step of the same request is done again."""

    function: str
    arguments: dict[str, Any]
    key: str


class Answer(Struct, omit_defaults=True):
    """What came of it: `result` as JSON, or `error`. A child that ran out of memory is `spent`: it ends now."""

    result: bytes = b""
    error: str = ""
    traceback: str = ""
    spent: bool = False


class Unusable(Exception):
    """A function that cannot be a tool, or an argument it cannot take; the message says why."""


def main(channel: str, rules: str, parent: str, memory: str, file_bytes: str, module: str, *names: str) -> None:
    """Import, introduce the functions, serve until the channel ends."""
    confine(int(parent), int(memory), int(file_bytes))
    if rules:
        restrict(int(rules))
    peer = socket.socket(fileno=int(channel))
    peer.set_inheritable(False)  # a program the tool starts must not keep the channel open
    sys.path.insert(0, str(Path.cwd()))
    functions, hello = load(module, names)
    _send(peer, hello)
    if not hello.problem:
        _serve(peer, functions)


def confine(parent: int, memory: int, file_bytes: int) -> None:
    """Bind this process to its limits and to the daemon's life."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the daemon was gone before the line above
        os._exit(1)
    _limit(resource.RLIMIT_DATA, memory)  # not RLIMIT_AS: libraries reserve much that they never use
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)  # a crash must not write a tool's memory to the board's card
    os.nice(NICE)
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # lines: what a tool printed before it crashed is in the log
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    faulthandler.enable()  # ... and so is the line it crashed in


def _limit(what: int, most: int) -> None:
    """For good: neither the tool nor what it starts can raise it."""
    _, allowed = resource.getrlimit(what)
    least = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(what, (least, least))


def restrict(rules: int) -> None:
    """Keep edged's own files from this process and all that it starts (`landlock` made the rules)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0):
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


def load(module: str, names: tuple[str, ...]) -> tuple[dict[str, Callable[..., Any]], Hello]:
    """The functions of a module, and what to say about them."""
    try:
        loaded = importlib.import_module(module)
    except BaseException as error:  # a module may also end the interpreter while it is imported
        return {}, Hello(problem=f"cannot be imported: {_error_text(error)}", traceback=_trace(error))
    found, told = {}, {}
    for name in names:
        try:
            found[name] = _function(loaded, name)
            told[name] = describe(found[name])
        except Unusable as error:
            told[name] = Function(problem=str(error))
    return found, Hello(functions=told)


def describe(function: Callable[..., Any]) -> Function:
    """Description and parameters (name -> JSON Schema) of a function.

    Raises:
        Unusable: a parameter has no type hint a model can follow.
    """
    hints = _hints(function)
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # a function written in C may not tell
        raise Unusable(str(error)) from None
    parameters = {
        name: _described(parameter, hints.get(name, inspect.Parameter.empty))
        for name, parameter in signature.parameters.items()
        if name != KEY
    }
    first = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
    return Function(" ".join(first.split()), parameters)


def _function(loaded: object, name: str) -> Callable[..., Any]:
    function = getattr(loaded, name, None)
    if function is None:
        raise Unusable(f"the module has no function {name!r}")
    if not inspect.isroutine(inspect.unwrap(function)):
        raise Unusable(f"{name!r} is no function but {_article(type(function).__name__)}")
    return function  # type: ignore[no-any-return]  # of a module nobody knows


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception as error:  # a hint that is a text may be any code
        raise Unusable(f"its type hints cannot be read: {_error_text(error)}") from None


def _described(parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    """The JSON Schema of one parameter."""
    kinds = {
        parameter.VAR_POSITIONAL: f"*{parameter.name}: a model needs parameters with names",
        parameter.VAR_KEYWORD: f"**{parameter.name}: a model needs parameters with names",
        parameter.POSITIONAL_ONLY: f"parameter {parameter.name!r} is positional-only; arguments are given by name",
    }
    if parameter.kind in kinds:
        raise Unusable(kinds[parameter.kind])
    if hint is parameter.empty:
        raise Unusable(f"parameter {parameter.name!r} has no type hint")
    schema = _schema(parameter.name, hint)
    said = [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)]
    if said:
        schema = {**schema, "description": " ".join(said)}
    if parameter.default is not parameter.empty:
        schema["default"] = _default(parameter, hint)
    return schema


def _schema(name: str, hint: Any) -> dict[str, Any]:
    try:
        whole = msgspec.json.schema(hint)
        schema: dict[str, Any] = _inlined(whole, whole.pop("$defs", {}))
    except TypeError as error:
        # msgspec's last line says what it does not take; those before it explain ways out that a tool does not have
        raise Unusable(
            f"parameter {name!r}: {_briefly(hint)}: {str(error).splitlines()[-1]}; {ALLOWED_HINTS}"
        ) from None
    except RecursionError:
        raise Unusable(f"parameter {name!r}: {_briefly(hint)} holds itself; a model needs an end") from None
    if not schema:
        raise Unusable(f"parameter {name!r}: {_briefly(hint)} is any value; write which")
    return schema


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references, and without what the grammar does not know (uniqueItems) or the model need not read
    (the names of classes)."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        beside = {key: item for key, item in node.items() if key != "$ref"}
        return _inlined({**definitions[node["$ref"].rpartition("/")[2]], **beside}, definitions)
    properties = {name: _inlined(item, definitions) for name, item in node.get("properties", {}).items()}
    rest = {
        key: item if key in ("enum", "default") else _inlined(item, definitions)
        for key, item in node.items()
        if key not in ("title", "uniqueItems", "properties")
    }
    return {**rest, "properties": properties} if "properties" in node else rest


def _default(parameter: inspect.Parameter, hint: Any) -> Any:
    """A default as JSON. It comes back as an argument, so it must fit its own hint."""
    try:
        plain = msgspec.json.decode(msgspec.json.encode(parameter.default))
        msgspec.convert(plain, hint, str_keys=True)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        shown = f"its default {_briefly(parameter.default)} does not fit its type hint {_briefly(hint)}"
        raise Unusable(f"parameter {parameter.name!r}: {shown}: {error}") from None
    return plain


def _serve(peer: socket.socket, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer calls, one after the other."""
    frames, me = peer.makefile("rb"), os.getpid()
    while (frame := _receive(frames)) is not None:
        answer = perform(functions, msgspec.msgpack.decode(frame, type=Invocation))
        if os.getpid() != me:  # a tool that forked came back twice; only one may answer
            os._exit(0)
        _send(peer, answer)
        if answer.spent:
            return


def perform(functions: Mapping[str, Callable[..., Any]], call: Invocation) -> Answer:
    """Call a function; whatever it raises is an answer."""
    try:
        if call.function not in functions:  # the file was changed since the daemon read it
            return Answer(error=f"the module has no usable function {call.function!r} any more")
        return _encoded(_called(functions[call.function], call))
    except Unusable as error:
        return Answer(error=str(error))
    except MemoryError as error:
        return Answer(error=_error_text(error), traceback=_trace(error), spent=True)
    except BaseException as error:  # also sys.exit() of a function that was written as a program
        return Answer(error=_error_text(error), traceback=_trace(error))


def _called(function: Callable[..., Any], call: Invocation) -> Any:
    hints = _hints(function)
    arguments = {name: _converted(name, value, hints) for name, value in call.arguments.items()}
    if KEY in inspect.signature(function).parameters:
        arguments[KEY] = call.key
    result = function(**arguments)
    if not inspect.isawaitable(result):
        return result
    import asyncio  # only now: it is half of what the interpreter weighs

    return asyncio.run(_awaited(result))


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _converted(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    try:
        return msgspec.convert(value, hints.get(name, Any), str_keys=True)
    except msgspec.ValidationError as error:
        raise Unusable(f"argument {name!r}: {error}") from None


def _encoded(result: Any) -> Answer:
    try:
        body = msgspec.json.encode(_sayable(result))
        msgspec.msgpack.encode(msgspec.json.decode(body))  # replies are msgpack too, whose integers have an end
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        return Answer(error=f"its result, {_article(type(result).__name__)}, is no JSON: {str(error)[:MAX_MESSAGE]}")
    if len(body) > MAX_RESULT_BYTES:
        return Answer(error=f"its result has {len(body)} bytes as JSON; at most {MAX_RESULT_BYTES} are taken")
    return Answer(body)


def _sayable(result: Any) -> Any:
    """A result as it is, or with others for what JSON cannot say: the texts "Infinity" and "-Infinity", null for NaN
    (and a line in the log), and U+FFFD for what is no character (a file's name may be any bytes)."""
    plain = msgspec.to_builtins(result, str_keys=True)
    return _replaced(plain, lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _replaced(value: Any, spelled: Callable[[str], str]) -> Any:
    """A copy of a value in which texts that cannot be UTF-8 are spelled anew, and no number is infinite or NaN."""
    match value:
        case str():
            return value if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value) else spelled(value)
        case float():
            return value if math.isfinite(value) else _said(value)
        case dict():
            return {_replaced(key, spelled): _replaced(item, spelled) for key, item in value.items()}
        case list() | tuple():
            return [_replaced(item, spelled) for item in value]
    return value


def _said(number: float) -> str | None:
    """A number that is none, as SQLite has it too: an infinite one is there, NaN is no value."""
    if math.isnan(number):
        _tell_of_nan()
        return None
    return "Infinity" if number > 0 else "-Infinity"


@functools.cache
def _tell_of_nan() -> None:
    """Once for a process, in the log."""
    print("a result holds NaN, for which JSON has no word: it is given as null", file=sys.stderr)  # noqa: T201


def _error_text(error: BaseException) -> str:
    """Type and message of an error, short."""
    if isinstance(error, MemoryError):
        return "MemoryError: it needs more than the tool's `memory`"
    try:
        message = str(error)
    except Exception:  # an error of the user's whose own text fails
        message = ""
    name = type(error).__name__
    return f"{name}: {message}"[:MAX_MESSAGE] if message else name


def _trace(error: BaseException) -> str:
    """The traceback, from the first line that is not of this file."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))[-MAX_TRACEBACK:]
    except Exception:  # out of memory, or an error whose own text fails
        return ""


def _briefly(value: object) -> str:
    text = inspect.formatannotation(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _receive(frames: IO[bytes]) -> bytes | None:
    """The next frame; None at the end."""
    head = frames.read(HEAD)
    if len(head) < HEAD:
        return None
    size = int.from_bytes(head)
    body = frames.read(size)
    return body if len(body) == size else None


def _send(peer: socket.socket, frame: Struct) -> None:
    try:
        body = msgspec.msgpack.encode(frame)
    except UnicodeEncodeError:  # of a file's name, say, an error quotes bytes that are no UTF-8
        plain = msgspec.to_builtins(frame, builtin_types=(bytes,))
        body = msgspec.msgpack.encode(_replaced(plain, lambda text: text.encode(errors="backslashreplace").decode()))
    peer.sendall(len(body).to_bytes(HEAD) + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
