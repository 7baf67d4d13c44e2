"""Models whose chat template takes dialogues in a way of its own: what people say reaches the model all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.client import AsyncClient
from tests.support.daemon import Daemon
from tests.support.gguf import with_template
from tests.support.real_model import model_path

pytestmark = pytest.mark.model

TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Gemma 2 does.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
)
# As those of models that also see pictures do.
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Mistral's do: nobody speaks twice in a row, and the system text stands before the last question.
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Says the same whatever it is given.
DEAF = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
MORE = "red green blue yellow white black brown pink"

AGENTS = """
[models.odd]
source = "file:{path}"
context = 2048
[agents.house]
model = "odd"
[agents.talk]
model = "odd"
system = "You are the assistant of a small house."
max_tokens = 8
"""


def daemon_with(folder: Path, template: str) -> Daemon:
    """Its agents `house`, with tools, and `talk`, without, have a model with this template; it is not started."""
    with_template(model_path(), folder / "odd.gguf", template, computes=True)
    daemon = Daemon(folder)
    daemon.drop_in(AGENTS.format(path=folder / "odd.gguf"))
    return daemon


@pytest.mark.parametrize("template", [NO_SYSTEM, PARTS, ALTERNATING], ids=["no system", "parts", "alternating"])
async def test_every_word_reaches_the_model(tmp_path: Path, template: str) -> None:
    """In decisions and in answers: a longer question is a longer prompt, by as many tokens as it has more."""
    async with daemon_with(tmp_path, template) as daemon, AsyncClient(daemon.socket) as client:
        for agent in ("talk", "house"):
            prompts = []
            for words in (MORE, f"{MORE} {MORE}"):
                reply = await client.ask(f"Name a colour: {words}", agent=agent, max_tokens=8)
                assert reply["status"] == "done" or reply["error"]["code"] == "tool_failed", reply["error"]
                prompts.append(reply["usage"]["prompt_tokens"])
            assert prompts[1] - prompts[0] >= len(MORE.split()), agent


async def test_model_that_does_not_hear_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Else it would act on what nobody said."""
    async with daemon_with(tmp_path, DEAF) as daemon, AsyncClient(daemon.socket) as client:
        for agent in ("talk", "house"):
            reply = await client.ask("Hello", agent=agent)
            assert reply["error"]["code"] == "model_unavailable"
            assert "template" in reply["error"]["message"]
            assert reply["tool_calls"] == []
        assert daemon.rows("diary") == daemon.rows("valve_commands") == []
