"""Python tools without a process: functions into schemas, arguments into values, results into JSON, configuration."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest

from edged import config
from edged.agent.grammars.kept import kept
from edged.config import PythonTool
from edged.errors import ConfigError
from edged.tools.python import child
from edged.tools.python.child import MAX_RESULT_BYTES, Answer, Invocation, Unusable, describe, load, perform
from edged.tools.sql import rows


class Bed(enum.Enum):
    """Where plants grow."""

    NORTH = "north"
    SOUTH = "south"


class Level(enum.IntEnum):
    """How much."""

    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Plan:
    """A watering."""

    bed: Bed
    minutes: float = 1.0


@dataclasses.dataclass
class Endless:
    """Holds itself."""

    inner: Optional[Endless]  # noqa: UP045  # the text of a hint is evaluated


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BEDS = {"enum": ["north", "south"]}

SCHEMAS: list[tuple[Any, dict[str, Any]]] = [
    (str, STRING),
    (int, INTEGER),
    (float, NUMBER),
    (bool, {"type": "boolean"}),
    (Literal["a", "b"], {"enum": ["a", "b"]}),
    (Literal[1, 2], {"enum": [1, 2]}),
    (Bed, BEDS | {"description": "Where plants grow."}),
    (Level, {"enum": [1, 2], "description": "How much."}),
    (list[str], {"type": "array", "items": STRING}),
    (list[Literal["a"]], {"type": "array", "items": {"enum": ["a"]}}),
    (set[int], {"type": "array", "items": INTEGER}),
    (dict[str, int], {"type": "object", "additionalProperties": INTEGER}),
    (list, {"type": "array"}),
    (Optional[int], {"anyOf": [INTEGER, {"type": "null"}]}),  # noqa: UP045  # the other way to write it
    (int | None, {"anyOf": [INTEGER, {"type": "null"}]}),
    (int | str, {"anyOf": [INTEGER, STRING]}),
    (Annotated[int, "in percent"], INTEGER | {"description": "in percent"}),
    (Annotated[int, msgspec.Meta(ge=0, le=9), "steps"], INTEGER | {"minimum": 0, "maximum": 9, "description": "steps"}),
    (dt.date, STRING | {"format": "date"}),
    (Decimal, STRING | {"format": "decimal"}),
]


def taking(hint: Any, default: Any = ...) -> Callable[..., Any]:
    """A function with one parameter x."""

    def tool(x: Any) -> Any:
        """Does it."""
        return x

    tool.__annotations__["x"] = hint
    if default is not ...:
        tool.__defaults__ = (default,)
    return tool


@pytest.mark.parametrize(("hint", "schema"), SCHEMAS, ids=[str(hint) for hint, _ in SCHEMAS])
def test_type_hint_is_a_schema_the_grammar_knows(hint: Any, schema: dict[str, Any]) -> None:
    """Without references and titles."""
    told = describe(taking(hint)).parameters["x"]
    told.pop("description", None) if "description" not in schema else None
    assert told == schema
    _compiles(kept(told, loose=True).schema)


def test_dataclass_is_an_object_with_its_fields() -> None:
    """Nested enums stand in their place."""
    told = describe(taking(Plan)).parameters["x"]
    assert told["type"] == "object"
    assert told["properties"]["bed"]["enum"] == ["north", "south"]
    assert told["properties"]["minutes"]["default"] == 1.0
    assert told["required"] == ["bed"]
    assert "$ref" not in json.dumps(told)
    _compiles(told)


def _compiles(schema: dict[str, Any]) -> None:
    import llguidance

    rules = llguidance.LLMatcher.grammar_from_lark(f"start: %json {json.dumps(schema)}")
    assert llguidance.LLMatcher.validate_grammar(rules) == ""


@pytest.mark.parametrize(
    ("hint", "default", "plain"),
    [(int, 5, 5), (int | None, None, None), (Bed, Bed.NORTH, "north"), (list[int], [1], [1]), (float, 2, 2)],
)
def test_default_stands_in_the_schema_as_json(hint: Any, default: Any, plain: Any) -> None:
    """So the parameter is not required."""
    assert describe(taking(hint, default)).parameters["x"]["default"] == plain


def _none(x: int = None) -> None:  # type: ignore[assignment]  # noqa: RUF013  # the mistake that is to be found
    """."""


def _args(*x: int) -> None:
    """."""


def _kwargs(**x: int) -> None:
    """."""


def _positional(x: int, /) -> None:
    """."""


def _bare(x):  # type: ignore[no-untyped-def]
    """."""


def _lost(x: Lost) -> None:  # type: ignore[name-defined]  # noqa: F821  # the mistake that is to be found
    """."""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_args, r"\*x: a model needs"),
        (_kwargs, r"\*\*x: a model needs"),
        (_positional, "'x' is positional-only"),
        (_bare, "'x' has no type hint"),
        (_lost, "hints cannot be read: NameError: name 'Lost'"),
        (_none, "'x': its default None does not fit its type hint int"),
        (taking(Any), "'x': .*Any is any value"),
        (taking(object), "'x': object"),
        (taking(complex), "'x': complex: type <class 'complex'> is not supported; allowed are .* Decimal, "),
        (taking(list[Path]), "'x': list.*Path.* is not supported; allowed are str, int"),
        (taking(list[str] | tuple[int]), "may not contain more than one array-like .*; allowed are str, int"),
        (taking(Callable[[], None]), "'x': "),
        (taking(Endless), "'x': .*Endless holds itself"),
        (taking(int, "five"), "its default 'five' does not fit its type hint int"),
    ],
)
def test_parameter_without_a_usable_hint_is_refused(function: Callable[..., Any], says: str) -> None:
    """The message names the parameter."""
    with pytest.raises(Unusable, match=says):
        describe(function)


def test_description_is_the_first_paragraph_of_the_docstring_in_one_line() -> None:
    """What is written for developers stays with them."""

    def tool() -> None:
        """Waters one
        bed.

        Args: none.
        """

    assert describe(tool).description == "Waters one bed."
    tool.__doc__ = None
    assert describe(tool).description == ""


def test_idempotency_key_is_not_the_models_business_and_reaches_the_function() -> None:
    """It needs no hint, and what the model says cannot replace it."""

    def tool(bed: Bed, idempotency_key) -> str:  # type: ignore[no-untyped-def]
        return f"{bed} {idempotency_key}"

    assert list(describe(tool).parameters) == ["bed"]
    assert called(tool, bed="north") == "Bed.NORTH r:1"


def called(function: Callable[..., Any], **arguments: Any) -> Any:
    """What a call gives."""
    answer = perform({"tool": function}, Invocation("tool", arguments, "r:1"))
    assert not answer.error, answer.error
    return msgspec.json.decode(answer.result)


def failed(function: Callable[..., Any], **arguments: Any) -> Answer:
    """What a call that must fail says."""
    answer = perform({"tool": function}, Invocation("tool", arguments, "r:1"))
    assert answer.error
    return answer


@pytest.mark.parametrize(
    ("hint", "given", "got"),
    [
        (Bed, "south", Bed.SOUTH),
        (Plan, {"bed": "north"}, Plan(Bed.NORTH)),
        (float, 3, 3.0),
        (set[int], [1, 1], {1}),
        (dt.date, "2026-03-01", dt.date(2026, 3, 1)),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (Annotated[int | None, "x"], None, None),
    ],
)
def test_argument_becomes_what_its_hint_says(hint: Any, given: Any, got: Any) -> None:
    """The function gets what it declares."""
    seen: list[Any] = []
    function = taking(hint)

    @functools.wraps(function)
    def tool(x: Any) -> None:
        seen.append(x)

    assert called(tool, x=given) is None
    assert seen == [got]
    assert type(seen[0]) is type(got)


def test_argument_that_does_not_fit_is_refused_by_name() -> None:
    """Before the function runs."""
    answer = failed(taking(Bed), x="west")
    assert answer.error == "argument 'x': Invalid enum value 'west'"
    assert answer.traceback == ""


def test_async_function_is_awaited() -> None:
    """In a loop of its own."""

    async def tool(x: int) -> int:
        return x + 1

    assert called(tool, x=1) == 2


def test_result_may_be_whatever_json_can_hold() -> None:
    """Dataclasses, enums, dates; what is no number is null."""
    day = dt.date(2026, 3, 1)
    result = {"plan": Plan(Bed.NORTH), "at": day, "nan": float("nan"), "t": (1,)}
    assert called(lambda: result) == {
        "plan": {"bed": "north", "minutes": 1.0},
        "at": "2026-03-01",
        "nan": None,
        "t": [1],
    }


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (object(), "its result, an object, is no JSON"),
        (2**100, "its result, an int, is no JSON"),
        ({"a": _nested(100_000)}, "its result, a dict, is no JSON"),
        ("x" * MAX_RESULT_BYTES, "its result has 65538 bytes as JSON; at most 65536"),
    ],
    ids=["object", "int", "deep", "large"],
)
def test_result_that_is_no_json_or_too_large_fails(result: Any, says: str) -> None:
    """It is not cut: half a document says something else."""
    assert failed(lambda: result).error.startswith(says)


def test_numbers_and_texts_that_json_cannot_say_are_said_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    """A division by zero of NumPy's, and a file whose name is Latin-1: neither costs the rest of the result."""
    nothing, many = float("nan"), float("inf")
    child._tell_of_nan.cache_clear()
    assert called(lambda: {"mean": nothing, "all": [many, -many, 1.5]}) == {
        "mean": None,
        "all": ["Infinity", "-Infinity", 1.5],
    }
    assert "NaN" in capsys.readouterr().err
    assert called(lambda: ["T\udcfcr.jpg", "Tür.jpg", {"\ud800": "\ud83d\ude00"}]) == [
        "T\ufffdr.jpg",
        "Tür.jpg",
        {"\ufffd": "😀"},
    ]


def test_result_may_be_as_large_as_that_of_a_statement() -> None:
    """One bound for what a model is shown."""
    assert MAX_RESULT_BYTES == rows.MAX_RESULT_BYTES
    assert len(called(lambda: "x" * (MAX_RESULT_BYTES - 2))) == MAX_RESULT_BYTES - 2


class Mute(Exception):
    """Its own text fails."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no bed"), "ValueError: no bed"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Mute(), "Mute"),
    ],
)
def test_what_a_function_raises_is_its_answer(error: BaseException, says: str) -> None:
    """With its type; the traceback begins in the user's file."""

    def tool() -> None:
        raise error

    answer = failed(tool)
    assert (answer.error, answer.spent) == (says, False)
    assert "child.py" not in answer.traceback
    assert isinstance(error, Mute) or "raise error" in answer.traceback


def test_message_of_an_error_is_bounded() -> None:
    """A model reads it."""

    def tool() -> None:
        raise ValueError("x" * 100_000)

    assert len(failed(tool).error) == 500
    assert len(failed(tool).traceback) == 8000


def test_out_of_memory_ends_the_process() -> None:
    """What a library had half done there is not trusted."""

    def tool() -> None:
        raise MemoryError

    assert failed(tool).spent


def test_load_names_what_is_missing_and_what_is_no_function() -> None:
    """A function that cannot be a tool does not hide the others."""
    functions, hello = load("json", ("dumps", "nothing", "JSONDecoder", "codecs", "loads"))
    assert hello.problem == ""
    assert "loads" in functions
    problems = {name: function.problem for name, function in hello.functions.items()}
    assert problems["nothing"] == "the module has no function 'nothing'"
    assert problems["JSONDecoder"] == "'JSONDecoder' is no function but a type"
    assert problems["codecs"] == "'codecs' is no function but a module"
    assert "has no type hint" in problems["loads"]
    assert load("no_such_module", ("x",))[1].problem.startswith("cannot be imported: ModuleNotFoundError: No module")


TABLE = '[tools.t]\npython = "m:f"\n'


def settings(folder: Path, text: str) -> config.Config:
    """A configuration of that text."""
    path = folder / "edged.toml"
    path.write_text(text)
    return config.load(str(path))


def test_python_tool_has_the_contracts_defaults_and_its_folder_lies_beside_the_file(tmp_path: Path) -> None:
    """Writes, report, ten seconds. Reading it imports nothing."""
    loaded = settings(tmp_path, TABLE)
    tool = loaded.tools["t"]
    assert isinstance(tool, PythonTool)
    assert (tool.effect, tool.on_uncertain, tool.timeout_s, tool.memory) == ("write", "report", 10.0, "128MiB")
    assert loaded.tools_dir == tmp_path / "tools"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('sql = "SELECT 1"', "tools.t", "exactly one of `sql`, `publish`, `python` and `mcp`"),
        ('effect = "maybe"', "tools.t.effect", "allowed are read, write"),
        ('on_uncertain = "maybe"', "tools.t.on_uncertain", "allowed are retry, report"),
        ('memory = "lots"', "tools.t.memory", "is no size"),
        ('memory = "1MiB"', "tools.t.memory", "outside 32MiB"),
        ("timeout_s = 0", "tools.t.timeout_s", "outside 0.01"),
        ('database = "plant"', "tools.t.database", "unknown key; allowed are description, say"),
    ],
)
def test_wrong_key_of_a_python_tool_is_named(tmp_path: Path, text: str, key: str, says: str) -> None:
    """As for every table."""
    with pytest.raises(ConfigError, match=says) as caught:
        settings(tmp_path, TABLE + text)
    assert caught.value.key == key


@pytest.mark.parametrize("name", ["m", "m:", ":f", "m.f", "m:f:g", "m/n:f", "m:f()", "../m:f", "m:1", "m :f", "-m:f"])
def test_python_names_a_module_and_a_function(tmp_path: Path, name: str) -> None:
    """Nothing else: no path, no call."""
    with pytest.raises(ConfigError, match='write "module:function"') as caught:
        settings(tmp_path, f'[tools.t]\npython = "{name}"\n')
    assert caught.value.key == "tools.t.python"


def test_daemon_without_python_tools_does_not_load_them() -> None:
    """What is not used costs no memory."""
    code = "import edged.daemon.assembly, edged.tools.toolbox, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edged.tools.toolbox" in done.stdout
    assert not {"edged.tools.python.process", "edged.tools.python.child", "edged.tools.python.worker"} & set(
        done.stdout.split()
    )
