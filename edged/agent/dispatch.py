"""Where a request is tried, until there is an answer. `router.decide` says where to go next; an attempt there answers,
or shows why it could not, and the router is asked again with that."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import UNSET

from edged import wire
from edged.agent import router
from edged.agent.grammars import grammar, precheck
from edged.agent.loop import Escalation, Outcome, Run
from edged.agent.minds.cloud import Audit, RemoteMind
from edged.agent.minds.local import LocalMind
from edged.agent.minds.server import ServedMind
from edged.agent.privacy.masking import Border
from edged.agent.prompts import ESCALATE, REPLY, Prompts
from edged.agent.router import Decision, Facts, Go, Reason
from edged.config import Agent, Config, Tool
from edged.errors import ContextExceeded, EdgedError, ModelUnavailable, NoLink, NoMemory, OverBudget, ToolFailed
from edged.interfaces import Engine
from edged.store.journal import Journal
from edged.tools.toolbox import Toolbox
from edged.types import JSON, AuditEntry, Chat, Finding, Privacy, Request, RouteTaken, ToolCall
from edged.upstreams import Cloud, Served

log = logging.getLogger("edged.dispatch")


class Trail:
    """The way of one request so far: what attempts on the board showed, and the last decision.

    Args:
        keep: writes the findings down: after a crash the board does not try again what it gave up.
    """

    def __init__(self, findings: tuple[Finding, ...], keep: Callable[[tuple[Finding, ...]], Awaitable[None]]) -> None:
        self.findings = findings
        self.decision: Decision | None = None
        self._keep = keep

    async def found(self, finding: Finding) -> None:
        """One more."""
        self.findings = (*self.findings, finding)
        await self._keep(self.findings)


class Dispatcher:
    """Knows the minds that can answer, and hands a run to one after the other.

    Args:
        speak: gives the prompts of an agent.
        served: the models that servers on this board run.
        audit: gets an entry for every question that leaves the board.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        cloud: Cloud,
        speak: Callable[[str], Awaitable[Prompts]],
        served: Served | None = None,
        *,
        audit: Callable[[AuditEntry], None] = lambda entry: None,
    ) -> None:
        self._audit = audit
        self._config, self._engine, self._cloud, self._speak = config, engine, cloud, speak
        self._served = served or Served({})
        self.refusing: NoMemory | None = None  # what new work that would have to be done here is told

    def check(self, request: Request) -> None:
        """BadRequest where it insists on what can never be."""
        router.decide(self._facts(request, ()))

    def refusal(self, request: Request) -> NoMemory | None:
        """Why a new request cannot be taken in now; None: it can, here or elsewhere."""
        if self.refusing is None or router.decide(self._facts(request, ())).go in (Go.CLOUD, Go.WAIT):
            return None
        return NoMemory(self.refusing.message, retry_after_s=self.refusing.retry_after_s)

    async def check_schema(self, request: Request) -> None:
        """Inexpressible where the board is to answer in a shape that no grammar can be made of. Now: once the model is
        at it, a tool may have acted."""
        schema = request.response_schema
        if schema is None or router.decide(self._facts(request, ())).go is not Go.LOCAL:
            return  # what an upstream writes is validated, so it may have any
        if self._config.agents[request.agent].model in self._served:
            return  # likewise
        if found := await precheck.problem([precheck.Part(schema, grammar.answer(schema))]):
            raise precheck.Inexpressible(None, found[1])

    def is_private(self, request: Request) -> bool:
        """Whether nothing of it may ever leave the board: the stricter of what the request and its agent say."""
        return router.stricter(self._config.agents[request.agent].privacy, request.privacy) is Privacy.DEVICE

    async def answer(self, run: Run, trail: Trail) -> Outcome | None:
        """Try until there is an answer; None: it needs an upstream that cannot take it now, and is to be parked.

        Raises:
            EdgedError: nobody can answer it.
        """
        refused, dear, failure = frozenset[str](), frozenset[str](), None
        while True:
            facts = self._facts(run.request, trail.findings, refused=refused, dear=dear)
            decision = trail.decision = router.decide(facts)
            if decision.go is Go.WAIT:
                return None
            if decision.go is Go.FAIL:
                raise self._failure(run.request.agent, decision, failure)
            try:
                return await self._attempt(run, decision)
            except NoLink as error:  # its link state knows: the next decision is another one
                if decision.go is not Go.CLOUD:
                    raise
                log.warning("upstream %s cannot be used: %s", decision.upstream, error.message)
            except OverBudget as error:
                log.warning("upstream %s cannot be used: %s", decision.upstream, error.message)
                dear |= {str(decision.upstream)}
            except Escalation as escalation:
                failure = escalation.error
                await trail.found(escalation.finding)
            except EdgedError as error:
                failure = error
                finding = _shows(error)
                if decision.go is Go.CLOUD and isinstance(error, ModelUnavailable):
                    refused |= {str(decision.upstream)}
                elif decision.go is Go.CLOUD or decision.degraded or finding is None:
                    raise
                else:
                    await trail.found(finding)

    def route(self, agent: str, trail: Trail | None, confidence: float | None, variant: str = "") -> RouteTaken:
        """Where a request was answered, or tried last, and why."""
        decision = (trail.decision if trail else None) or Decision(Go.LOCAL, Reason.LOCAL_OK)
        if decision.upstream is not None:
            model = self._config.upstreams[decision.upstream].model
            return RouteTaken("cloud", model, decision.reason, confidence, decision.upstream)
        model = self._config.agents[agent].model if agent in self._config.agents else ""
        return RouteTaken("local", model, decision.reason, confidence, variant=variant or UNSET)

    async def explain(
        self, request: Request, agent: Agent, toolbox: Toolbox, journal: Journal, *, decide: bool
    ) -> dict[str, JSON]:
        """Where a request would go now and why; nothing is stored or done.

        Args:
            agent: as it works for whoever asks.
            decide: also let the board's model choose a call, as it would, and count that in.
        """
        facts = self._facts(request, ())
        decision, call = router.decide(facts), None
        if decide and decision.go is Go.LOCAL and agent.tools:
            run = Run(
                wire.new_rid(), agent, request, toolbox=toolbox, journal=journal, history=(), steps=(), stream=None
            )
            mind = await self._mind_here(run, degraded=decision.degraded)
            chosen, logprob = await mind.decide(run)
            confidence = None if logprob is None else math.exp(logprob)
            call = {"name": chosen.name, "arguments": chosen.arguments, "confidence": confidence}
            finding = _chose(chosen, confidence, agent)
            decision = router.decide(self._facts(request, (finding,))) if finding else decision
        error: EdgedError | None = self.refusal(request)
        if decision.go is Go.FAIL:
            error = self._failure(request.agent, decision, None)
        links = self._cloud.status()
        known = [links.get(upstream.name, {}) for upstream in facts.upstreams]
        return {
            "agent": request.agent,
            "model": agent.model,
            "route": request.route or agent.route,
            "privacy": facts.privacy,
            "when_offline": agent.when_offline,
            "min_confidence": agent.min_confidence,
            **msgspec.structs.asdict(decision),
            "error": None if error is None else {"code": error.code, "message": error.message},
            "upstreams": [
                {**msgspec.structs.asdict(upstream), "state": link.get("state"), "reason": link.get("reason")}
                for upstream, link in zip(facts.upstreams, known, strict=True)
            ],
            "call": call,
            "masked": self._masked(request) if router.may_leave(facts) else {},
        }

    def _masked(self, request: Request) -> dict[str, JSON]:
        """How much of a request's own text would leave as placeholders, by their kinds."""
        border = Border(self._config.tools, detects=self._config.agents[request.agent].mask)
        border.out(Chat(key="", messages=request.messages, max_tokens=None))
        return dict(border.vault.counts)

    async def _attempt(self, run: Run, decision: Decision) -> Outcome:
        if decision.go is Go.LOCAL:
            return await run.work(await self._mind_here(run, degraded=decision.degraded))
        upstream = str(decision.upstream)
        audit = Audit(self._audit, self._config.upstreams[upstream].audit_bytes)
        return await run.work(RemoteMind(self._cloud, upstream, self._tools(run.agent), self._config.tools, audit))

    async def _mind_here(self, run: Run, *, degraded: bool) -> LocalMind | ServedMind:
        """degraded: it would have gone to the cloud, and its agent wants it done here all the same."""
        model = run.agent.model
        may_escalate = not degraded and router.may_leave(self._facts(run.request, ()))
        if model in self._served:
            context = self._config.models[model].context
            return ServedMind(self._served, model, self._tools(run.agent), context, may_escalate=may_escalate)
        with run.tally.loading():
            prompts = await self._speak(run.request.agent)
        confidence = 0.0 if degraded else run.agent.min_confidence
        return LocalMind(self._engine, prompts, may_escalate=may_escalate, min_confidence=confidence)

    def _tools(self, agent: Agent) -> dict[str, Tool]:
        return {name: self._config.tools[name] for name in agent.tools}

    def _facts(
        self,
        request: Request,
        findings: tuple[Finding, ...],
        *,
        refused: frozenset[str] = frozenset(),
        dear: frozenset[str] = frozenset(),
    ) -> Facts:
        """What the router decides from. refused: upstreams that do not want this request; dear: for whose budget it is
        too much."""
        agent = self._config.agents[request.agent]
        names = [name for name in self._config.upstreams_of(request.agent) if name not in refused]
        return Facts(
            asked=request.route,
            configured=agent.route,
            privacy=router.stricter(agent.privacy, request.privacy),
            when_offline=agent.when_offline,
            upstreams=tuple(
                msgspec.structs.replace(u, budget_left=False) if u.name in dear else u for u in self._cloud.facts(names)
            ),
            findings=findings,
            chars=sum(len(message.content) for message in request.messages),
            context=self._config.models[agent.model].context,
            pressed=self.refusing is not None,
        )

    def _failure(self, agent: str, decision: Decision, failure: EdgedError | None) -> EdgedError:
        """Why a request fails that the router gives up. failure: of the last attempt."""
        retry_after_s = self._cloud.retry_after_s(self._config.upstreams_of(agent))
        what = f"; the board could not answer it: {failure.message}" if failure else ""
        if decision.reason is Reason.OVER_BUDGET:
            return OverBudget(f"today's tokens of the upstreams are spent{what}", retry_after_s=retry_after_s)
        if decision.reason is Reason.OFFLINE:
            return NoLink(f"it needs the cloud, and no upstream can be reached{what}", retry_after_s=retry_after_s)
        return failure or ToolFailed(f"the board cannot answer it ({decision.reason}), and it may go nowhere else")


def _chose(call: ToolCall, confidence: float | None, agent: Agent) -> Finding | None:
    """What a decision of the board's model shows, before anything is done."""
    if call.name == ESCALATE.name:
        return Finding.ESCALATED
    unsure = confidence is not None and confidence < agent.min_confidence
    return Finding.UNSURE if unsure and call.name != REPLY.name else None


def _shows(error: EdgedError) -> Finding | None:
    """What a failed attempt on the board shows; None where an upstream could not do better."""
    match error:
        case ContextExceeded():
            return Finding.CONTEXT
        case ModelUnavailable() | NoMemory():
            return Finding.UNAVAILABLE
        case ToolFailed():
            return Finding.FAILED
        case _:
            return None
