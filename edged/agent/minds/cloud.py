"""An upstream's model as a mind: the same tools, the same journal. It follows no grammar of ours, so every call and
every shaped answer is checked before it counts; what is wrong goes back to it. What is private it never sees
(`border`): everything on this side of `_ask` has the true values."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from edged.agent import answers
from edged.agent.loop import Answered, Decided, Run
from edged.agent.privacy.masking import Border
from edged.agent.privacy.vault import Restorer, in_json
from edged.agent.prompts import as_messages, specs
from edged.config import Tool
from edged.errors import ModelUnavailable, ToolFailed
from edged.types import JSON, AuditEntry, Chat, ChatAnswer, Message
from edged.upstreams import Cloud

GIVEN_OUT = re.compile(rb"\[([A-Z]+)_\d+\]")


class Audit(Struct, frozen=True):
    """Who is told what leaves. tell: gets an entry for every question; shown: so many bytes of it are in there."""

    tell: Callable[[AuditEntry], None] = lambda entry: None
    shown: int = 0


class Heard(Struct, frozen=True):
    """An answer with the values in it. typed: the same text where values that are no texts stand without quotes; None:
    it has none of those."""

    answer: ChatAnswer
    typed: str | None = None


class RemoteMind:
    """Implements `loop.Mind` with one upstream.

    Args:
        tools: of the agent. Those that are private as a whole are not offered.
        configured: all tools, also those that an earlier turn has used.
    """

    patience = 2  # failed calls that go back: a larger model reads an error and does something else

    def __init__(
        self,
        cloud: Cloud,
        upstream: str,
        tools: Mapping[str, Tool],
        configured: Mapping[str, Tool] | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._cloud, self._upstream = cloud, upstream
        offered = {name: tool for name, tool in tools.items() if tool.private is not True}
        self._specs = {spec.name: spec for spec in specs(offered)}
        self._configured = tools if configured is None else configured
        self._audit = audit or Audit()

    async def move(self, run: Run) -> Decided | Answered:
        """See Mind."""
        schema = run.request.response_schema
        corrections: list[Message] = []
        for _ in range(answers.MAX_CORRECTIONS + 1):
            heard = await self._ask(run, corrections)
            answer = heard.answer
            if answer.calls:
                calls, wrong = await answers.checked(self._specs, answer.calls, run.left)
                if not wrong:
                    return Decided(calls)
                corrections += wrong
                continue
            problem = await self._wrong_with(run, answer)
            if problem is None:
                return Answered(answer.text if schema is not None else answer.text.strip())
            if heard.typed is not None and await answers.wrong_with(heard.typed, schema) is None:
                if run.stream:
                    run.stream.begin()
                    run.stream.piece(heard.typed)
                return Answered(heard.typed)
            corrections += answers.correction(answer.text, problem)
        raise ToolFailed(f"upstream {self._upstream!r}: {corrections[-1].content}")

    async def _ask(self, run: Run, corrections: list[Message]) -> Heard:
        request = run.request
        made = [message for record in run.records for message in as_messages(record)]
        told = [message for turn in run.history if not turn.private for message in turn.messages]
        if run.stream:
            run.stream.begin()
        border = Border(self._configured, detects=run.agent.mask)
        system = (Message("system", run.agent.system),) if run.agent.system else ()
        chat = await asyncio.to_thread(  # a long conversation takes a while to look through
            border.out,
            Chat(
                key="",
                messages=(*told, *request.messages, *made),
                tools=tuple(self._specs.values()),
                may_call=run.may_act,
                response_schema=request.response_schema,
                max_tokens=run.max_tokens,
                sampling=run.sampling,
                stop=request.stop,
            ),
            system,
            corrections,
        )
        shaped = request.response_schema is not None
        restorer = Restorer(border.vault, run.stream.piece, in_json if shaped else str) if run.stream else None
        with run.tally.upstream() as generating:
            on_text = generating.hearing(restorer.piece) if restorer else None
            chat = answers.keyed(chat, run.rid)  # of what leaves: a digest of the values would tell of them
            generating.done = answer = await self._cloud.chat(
                self._upstream, chat, on_text, on_body=lambda body: self._leaves(run, border, chat, body)
            )
        if restorer:
            restorer.end()
        return Heard(border.back(answer, shaped=shaped), border.typed(answer.text) if shaped else None)

    def _leaves(self, run: Run, border: Border, chat: Chat, body: bytes) -> None:
        """Tell the audit log of a question. With `shown` it holds the very bytes, as many as that."""
        names = {(match[0].decode(), match[1].decode()) for match in GIVEN_OUT.finditer(body)}
        kinds = sorted(kind for name, kind in names if border.vault.gave(name))
        about: dict[str, JSON] = {
            "upstream": self._upstream,
            "agent": run.request.agent,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "placeholders": {kind: kinds.count(kind) for kind in kinds},
            "tools": [spec.name for spec in chat.tools],
        }
        if self._audit.shown:
            about["body"] = body[: self._audit.shown].decode(errors="replace")
        self._audit.tell(AuditEntry(what="upstream.asked", who=run.client or "edged", rid=run.rid, about=about))

    async def _wrong_with(self, run: Run, answer: ChatAnswer) -> str | None:
        """What to tell the model about an answer that is none; None where it is one."""
        schema = run.request.response_schema
        if answer.finish == "content_filter":
            raise ModelUnavailable(f"upstream {self._upstream!r} filtered its answer")
        if schema is not None and answer.finish == "length":
            raise answers.cut_off(run.max_tokens)
        return await answers.wrong_with(answer.text, schema)
