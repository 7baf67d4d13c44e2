"""An upstream's model as a mind: the same tools, the same journal. It follows no grammar of ours, so every call and
every shaped answer is checked before it counts; what is wrong goes back to it. It never sees what is private
(`privacy`): outside of `_ask` everything has the true values."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from edged.agent import answers, times
from edged.agent.answers import Wrong
from edged.agent.loop import Answered, Decided, Decider, Declined, Passed, Run
from edged.agent.minds.base import Resources
from edged.agent.privacy.masking import Masking
from edged.agent.privacy.vault import Restorer, in_json
from edged.agent.prompts import as_messages
from edged.agent.router import Decision, Go
from edged.agent.styles import specs
from edged.agent.world import Values, beside, said
from edged.errors import ModelUnavailable, NoLink, OverBudget, ToolFailed
from edged.types import JSON, AuditEntry, Chat, ChatAnswer, Message, RouteTaken
from edged.upstreams.http import OnBody, OnText

log = logging.getLogger("edged.minds.cloud")

PLACEHOLDER = re.compile(rb"\[([A-Z]+)_\d+\]")


class Heard(Struct, frozen=True):
    """An answer with the values in it. typed: the same text where values that are no texts stand without quotes; None:
    it has none of those."""

    answer: ChatAnswer
    typed: str | None = None


class CloudMind:
    """Implements `Mind` with the upstreams."""

    where: ClassVar[str] = "cloud"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def begin(self, run: Run, decision: Decision) -> CloudDecider | None:
        """See Mind."""
        if decision.go is not Go.CLOUD or decision.upstream is None:
            return None
        [facts] = self._resources.cloud.facts([decision.upstream])
        holds = decision.may_leave and facts.up and facts.room and facts.budget_left
        if not holds:  # it was made some time ago
            raise Declined
        return CloudDecider(self._resources, run, decision.upstream, decision.reason)


class CloudDecider(Decider):
    """Implements `Decider` with one upstream. Tools that are private as a whole are not offered."""

    patience = 2  # failed calls that go back: a larger model reads an error and does something else

    def __init__(self, resources: Resources, run: Run, upstream: str, reason: str) -> None:
        settings = resources.config.upstreams[upstream]
        self.route = RouteTaken(CloudMind.where, settings.model, reason, upstream=upstream)
        self._cloud, self._upstream = resources.cloud, upstream
        self._configured = resources.tools  # also those that an earlier turn has used
        self._audit, self._shown = resources.audit, settings.audit_bytes
        self._tools = resources.tools_of(run.agent)
        offered = {name: tool for name, tool in self._tools.items() if tool.private is not True}
        self._specs = {spec.name: spec for spec in specs(offered)}
        asked, tells = run.request.messages, times.tells(run.agent.clock, offered.values())
        self._asked = times.with_now(asked, run.moment) if tells else asked

    async def move(self, run: Run) -> Decided | Answered:
        """See Decider."""

        values = await Values.of(run.toolbox, self._tools)

        async def ask(corrections: Sequence[Message]) -> Decided | Answered | Wrong:
            heard = await self._ask(run, corrections, values, acting=run.may_act)
            if run.may_act and not heard.answer.calls and heard.answer.completion_tokens > run.max_tokens:
                # words, in the room of a decision: asked for again, as long as the client wants them
                heard = await self._ask(run, corrections, values, acting=False)
            if heard.answer.calls:
                calls = await answers.checked(
                    self._specs, heard.answer.calls, run.left, values, again=bool(corrections)
                )
                return calls if isinstance(calls, Wrong) else Decided(calls, upstream=True)
            return await self._answer(run, heard)

        return await answers.until_right(ask, lambda problem: ToolFailed(f"upstream {self._upstream!r}: {problem}"))

    async def preview(self, run: Run) -> Passed:
        """See Decider. An upstream is not asked only to find out what it would do: that costs tokens, and leaves."""
        return Passed()

    async def _answer(self, run: Run, heard: Heard) -> Answered | Wrong:
        """What it has put in words, if that is an answer."""
        answer, schema = heard.answer, run.request.response_schema
        if answer.finish == "content_filter":
            error = ModelUnavailable(f"upstream {self._upstream!r} filtered its answer")
            raise Declined(error, refused_by=self._upstream)
        if schema is not None and answer.finish == "length":
            raise answers.cut_off(run.max_tokens)
        problem = await answers.wrong_with(answer.text, schema)
        if problem is None:
            text = answer.text if schema is not None else answer.text.strip()
            return Answered(text, cut=answer.finish == "length")
        if heard.typed is not None and await answers.wrong_with(heard.typed, schema) is None:
            if run.stream:
                run.stream.begin()
                run.stream.piece(heard.typed)
            return Answered(heard.typed)
        return answers.corrected(answer.text, problem)

    async def _ask(self, run: Run, corrections: Sequence[Message], values: Values, *, acting: bool) -> Heard:
        """One question. acting: it may call tools; then its length is bounded as a decision's, not as the answer's."""
        request = run.request
        made = [message for record in run.records for message in as_messages(record)]
        earlier = [message for turn in run.history if not turn.private for message in turn.messages]
        if run.stream:
            run.stream.begin()
        masking = Masking(values.masked(self._configured), detects=run.agent.mask, secrets=values.secrets())
        told = values.told(said(run.history, run.request.messages), leaves=True) if acting else ""
        system = (Message("system", run.agent.system),) if run.agent.system else ()
        chat = await asyncio.to_thread(  # a long conversation takes a while to look through
            masking.mask,
            Chat(
                key="",
                messages=(*earlier, *beside(self._asked, told), *made),
                tools=tuple(map(times.described, self._specs.values())),
                may_call=acting,
                response_schema=request.response_schema,
                max_tokens=run.decision_tokens if acting else run.max_tokens,
                sampling=run.sampling,
                stop=request.stop,
            ),
            system,
            corrections,
        )
        shaped = request.response_schema is not None
        restorer = Restorer(masking.vault, run.stream.piece, in_json if shaped else str) if run.stream else None
        with run.accounting.upstream() as generating:
            on_text = generating.hearing(restorer.piece) if restorer else None
            chat = answers.keyed(chat, run.rid)  # of what leaves: a digest of the values would tell of them
            generating.done = answer = await self._chat(
                chat, on_text, on_body=lambda body: self._leaves(run, masking, chat, body)
            )
        if restorer:
            restorer.end()
        return Heard(masking.restore(answer, shaped=shaped), masking.typed(answer.text) if shaped else None)

    async def _chat(self, chat: Chat, on_text: OnText | None, on_body: OnBody) -> ChatAnswer:
        """One completion. Where the link is at fault its state knows, so the next decision is another one."""
        try:
            return await self._cloud.chat(self._upstream, chat, on_text, on_body=on_body)
        except ModelUnavailable as error:
            raise Declined(error, refused_by=self._upstream) from error
        except (NoLink, OverBudget) as error:
            log.warning(
                "upstream %s cannot be used: %s", self._upstream, error.message, extra={"event": "upstream_skipped"}
            )
            raise Declined(unaffordable_at=self._upstream if isinstance(error, OverBudget) else None) from error

    def _leaves(self, run: Run, masking: Masking, chat: Chat, body: bytes) -> None:
        """Tell the audit log of a question. With [upstreams] `audit_bytes` it holds that many of the very bytes."""
        names = {(match[0].decode(), match[1].decode()) for match in PLACEHOLDER.finditer(body)}
        kinds = sorted(kind for name, kind in names if masking.vault.gave(name))
        about: dict[str, JSON] = {
            "upstream": self._upstream,
            "agent": run.request.agent,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "placeholders": {kind: kinds.count(kind) for kind in kinds},
            "tools": [spec.name for spec in chat.tools],
        }
        if self._shown:
            about["body"] = body[: self._shown].decode(errors="replace")
        self._audit(AuditEntry(what="upstream.asked", who=run.client or "edged", rid=run.rid, about=about))
