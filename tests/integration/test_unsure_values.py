"""A value that the grammar had to cut is never called sure. With the default model, which is sure of what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.client import AsyncClient
from tests.support.daemon import Daemon
from tests.support.real_model import model_path

pytestmark = pytest.mark.model

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
HOUSE = """
[models.real]
source = "file:{path}"
context = 2048
adapter = "{adapter}"
[agents.garden]
model = "real"
system = "You run a small house."
tools = ["dose", "heat", "label"]
[tools.dose]
description = "Give the plants some millilitres of fertilizer."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:ml)"
effect = "write"
say = "{{ml}} ml given."
parameters.ml = {{ type = "integer" }}
examples = [{{ input = "Give 50 ml", arguments = {{ ml = 50 }} }}]
[tools.heat]
description = "Set the target temperature of the heating in degrees Celsius."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:celsius)"
effect = "write"
say = "Heating set to {{celsius}} degrees."
parameters.celsius = {{ type = "integer", minimum = 5, maximum = 30 }}
examples = [{{ input = "Heat to 19 degrees", arguments = {{ celsius = 19 }} }}]
[tools.label]
description = "Print a label."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:text)"
effect = "write"
say = "Printed."
parameters.text = {{ type = "string", maxLength = 8 }}
examples = [{{ input = "Print a label: milk", arguments = {{ text = "milk" }} }}]
"""


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("Give 2 ml", "Give 0.9 ml"),
        ("Heat to 21 degrees", "Heat to 21.5 degrees"),
        ("Print a label: honey", "Print a label: strawberries"),
    ],
)
async def test_value_that_was_cut_is_less_sure(tmp_path: Path, whole: str, cut: str) -> None:
    daemon = Daemon(tmp_path)
    daemon.drop_in(HOUSE.format(path=model_path().with_name(MODEL), adapter="auto"))
    async with daemon, AsyncClient(daemon.socket) as client:
        sure, unsure = [await client.ask(text, agent="garden") for text in (whole, cut)]
        assert sure["route"]["score"] > 0.5
        assert unsure["route"]["score"] < 0.01


CLIMATE = """
[tools.mode]
description = "Set the mode of the climate control."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:mode)"
effect = "write"
say = "Mode {{mode}}."
parameters.mode = {{ enum = ["heat", "cool"] }}
examples = [{{ input = "Set the mode to cool", arguments = {{ mode = "cool" }} }}]
[agents.garden]
tools = ["mode"]
min_confidence = {least}
"""


async def test_value_of_a_list_that_was_cut_is_less_sure_where_that_counts(tmp_path: Path) -> None:
    """A mode that the list lacks begins with one that it has."""
    model, found = model_path().with_name(MODEL), {}
    for least in (0.0, 1e-6):
        (folder := tmp_path / str(least)).mkdir()
        daemon = Daemon(folder)
        daemon.drop_in(HOUSE.format(path=model, adapter="none"))  # as JSON: compact calls are less sure as they are
        daemon.drop_in(CLIMATE.format(least=least), "60.toml")
        async with daemon, AsyncClient(daemon.socket) as client:
            for mode in ("heat", "heat_cool"):
                reply = await client.ask(f"Set the mode to {mode}", agent="garden")
                assert [call["arguments"] for call in reply["tool_calls"]] == [{"mode": "heat"}]
                found[least, mode] = reply["route"]["score"]
    assert found[1e-6, "heat"] == pytest.approx(found[0.0, "heat"], rel=0.2)
    assert found[1e-6, "heat_cool"] < 0.7 * found[0.0, "heat_cool"], found
