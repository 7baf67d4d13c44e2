"""Who answers a request. The router decides where it goes, the minds are asked in their order, and one that declines
says why: then the router decides again, knowing that."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection

import msgspec
from msgspec import UNSET

from edged import wire
from edged.agent import router
from edged.agent.dialects.compact import UNABLE
from edged.agent.grammars import precheck
from edged.agent.loop import Answered, Decided, Declined, Outcome, Passed, Run
from edged.agent.minds import MINDS
from edged.agent.minds.base import Resources
from edged.agent.privacy.masking import Masking
from edged.agent.router import Decision, Facts, Go, Reason
from edged.agent.styles import ESCALATE
from edged.agent.sureness import Sureness
from edged.agent.times import ClockUnset
from edged.agent.world import NotThere, Values
from edged.config import Agent
from edged.errors import EdgedError, Internal, NoLink, NoMemory, OverBudget, ToolFailed
from edged.store.journal import Journal
from edged.tools.toolbox import Toolbox
from edged.types import JSON, Chat, Finding, Privacy, Request, RouteTaken, ToolCall


class Routing:
    """How one request has been routed so far.

    findings: what attempts on the board showed. decision: the last one; None: not decided yet. route: of the mind that
    answers or tried last; None: none has tried.

    Args:
        keep: writes the findings down, so that after a crash the board does not try again what it gave up.
        entering: is told before the minds are asked to follow a decision; an error that it raises ends the request's
            attempt.
    """

    def __init__(
        self,
        findings: tuple[Finding, ...],
        keep: Callable[[tuple[Finding, ...]], Awaitable[None]],
        decision: Decision | None = None,
        *,
        entering: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        self.entering = entering
        self.findings = findings
        self.decision = decision
        self.route: RouteTaken | None = None
        self._keep = keep

    @property
    def degraded(self) -> bool:
        """Whether a weaker way than the one wanted answered. A mind in front of the others has its own way."""
        decision, route = self.decision, self.route
        return decision is not None and decision.degraded and (route is None or route.where == decision.go)

    async def found(self, finding: Finding) -> None:
        """One more."""
        self.findings = (*self.findings, finding)
        await self._keep(self.findings)


class Dispatcher:
    """Hands a run to the minds. `refusing` is the error that new work gets which would have to be done on this board;
    None: there is none. `clock`: the board's, by which requests are timed."""

    def __init__(self, resources: Resources) -> None:
        self._resources, self._config, self._cloud = resources, resources.config, resources.cloud
        self.clock = resources.clock
        self._minds = [mind(resources) for mind in MINDS]
        self.refusing: NoMemory | None = None

    def decide(self, request: Request, findings: tuple[Finding, ...] = ()) -> Decision:
        """Where a request goes, as things are now. BadRequest: it insists on what can never be."""
        return self._decided(request, self._facts(request, findings))

    def recall(self, request: Request, words: str) -> Decision | None:
        """A decision that was kept in words (see router.in_words); what it permits is looked at anew. None: there is
        none."""
        if request.agent not in self._config.agents or (kept := router.from_words(words)) is None:
            return None
        return self._permitted(request, kept, self._facts(request, ()))

    def refusal(self, decision: Decision) -> NoMemory | None:
        """Why a new request with this decision cannot be taken in now; None: it can, here or elsewhere."""
        if self.refusing is None or decision.go in (Go.CLOUD, Go.WAIT):
            return None
        return NoMemory(self.refusing.message, retry_after_s=self.refusing.retry_after_s)

    async def check_schema(self, request: Request, decision: Decision) -> None:
        """Inexpressible where the board is to answer in a shape that no grammar can be made of. It is checked when the
        request comes, because later a tool may have acted. What a server writes is validated, so it may have any."""
        if request.response_schema is not None and decision.go is Go.LOCAL and not decision.served:
            await precheck.fitted_answer(request.response_schema)

    def is_private(self, request: Request) -> bool:
        """Whether nothing of it may ever leave the board: the stricter of what the request and its agent say."""
        return router.stricter(self._config.agents[request.agent].privacy, request.privacy) is Privacy.DEVICE

    async def answer(self, run: Run, routing: Routing) -> Outcome | None:
        """Ask the minds until there is an answer; None: it needs an upstream that cannot take it now, and is to be
        parked. A decision that sent the request somewhere is followed; any other is made again first.

        Raises:
            EdgedError: no mind can answer it.
        """
        refused, unaffordable = set[str](), set[str]()
        failure: EdgedError | None = None
        decision = routing.decision
        if decision is None or decision.go not in (Go.LOCAL, Go.CLOUD):
            decision = self.decide(run.request, routing.findings)
        while True:
            routing.decision, routing.route = decision, None
            if decision.go in (Go.LOCAL, Go.CLOUD):
                routing.entering(decision)
            try:
                outcome = await self._ask(run, routing, decision)
            except Declined as declined:
                failure = declined.error or failure
                if declined.refused_by is not None:
                    refused.add(declined.refused_by)
                if declined.unaffordable_at is not None:
                    unaffordable.add(declined.unaffordable_at)
                if declined.finding is not None:
                    await routing.found(declined.finding)
                facts = self._facts(run.request, routing.findings, refused=refused, unaffordable=unaffordable)
                decision = self._decided(run.request, facts)
                continue
            if outcome is not None or decision.go is Go.WAIT:
                return outcome
            if decision.go is Go.FAIL:
                raise self._failure(run.request.agent, decision, failure)
            raise Internal(f"no mind answers what goes to {decision.go!r}")

    def route(self, agent: str, routing: Routing | None, run: Run | None) -> RouteTaken:
        """Where a request was answered, or tried last, and why."""
        if routing is not None and routing.route is not None:
            route = routing.route
        else:
            decision = (routing.decision if routing else None) or Decision(Go.LOCAL, Reason.LOCAL_OK)
            model = self._config.agents[agent].model if agent in self._config.agents else ""
            route = RouteTaken("local", model, decision.reason)
        if run is None:
            return route
        sure = run.sure
        told = {"confidence": sure.confidence, "score": sure.score, "variant": run.variant or UNSET}
        return msgspec.structs.replace(route, **told)

    async def explain(
        self,
        request: Request,
        agent: Agent,
        toolbox: Toolbox,
        journal: Journal,
        *,
        decide: bool,
        second_look: bool = True,
        role: str = "",
    ) -> dict[str, JSON]:
        """Where a request would go now and why; nothing is stored or done.

        Args:
            agent: as it works for the caller.
            decide: also let a mind choose what it would do first, and count that in.
            second_look: whether it may look at examples where it is unsure.
            role: of the caller.
        """
        facts = self._facts(request, ())
        decision = self._decided(request, facts)
        calls: list[JSON] = []
        first, sure = None, Sureness(agent, toolbox)
        if decide:
            run = Run(
                wire.new_rid(),
                agent,
                request,
                toolbox=toolbox,
                journal=journal,
                history=(),
                steps=(),
                stream=None,
                role=role,
                moment=self.clock.now(),
            )
            run.sure.second_look = second_look
            first, chosen = await self._preview(run, decision)
            if isinstance(chosen, Decided):
                sure = run.sure
                sure.add(chosen.logprob, called=chosen.calls[0].name in agent.tools)
                calls = [{"name": c.name, "arguments": c.arguments, **_timed(run, c)} for c in chosen.calls]
                if finding := _chose(chosen, sure, agent):
                    decision = self.decide(request, (finding,))
        error: EdgedError | None = self.refusal(decision)
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
            "line": await self._line(request.agent, agent),
            "go": decision.go,
            "reason": decision.reason,
            "upstream": decision.upstream,
            "degraded": decision.degraded,
            "mind": first,
            "error": None if error is None else {"code": error.code, "message": error.message},
            "upstreams": [
                {**msgspec.structs.asdict(upstream), "state": link.get("state"), "reason": link.get("reason")}
                for upstream, link in zip(facts.upstreams, known, strict=True)
            ],
            "call": {**calls[0], "confidence": sure.confidence, "score": sure.score} if calls else None,
            "calls": calls,
            "masked": await self._masked(request, agent, toolbox) if decision.may_leave else {},
        }

    async def _line(self, name: str, agent: Agent) -> dict[str, JSON] | None:
        """The least that counts: {least, counts: "confidence" or "score"}; None: no call is held back."""
        calibration = None
        with contextlib.suppress(EdgedError):  # the model is not there; a request will say so
            calibration = await self._resources.calibration(name)
        wanted = agent.min_confidence
        least = (calibration.auto if calibration else 0.0) if wanted == "auto" else wanted
        return {"least": least, "counts": "confidence" if calibration else "score"} if least else None

    async def _masked(self, request: Request, agent: Agent, toolbox: Toolbox) -> dict[str, JSON]:
        """How much of a request's own text would leave as placeholders, by their kinds."""
        values = await Values.of(toolbox, self._resources.tools_of(agent))
        masking = Masking(self._resources.tools, detects=agent.mask, secrets=values.secrets())
        masking.mask(Chat(key="", messages=request.messages, max_tokens=None))
        return dict(masking.vault.counts)

    async def _ask(self, run: Run, routing: Routing, decision: Decision) -> Outcome | None:
        """One mind after the other; None: all pass on. Raises Declined and EdgedError as they do."""
        for mind in self._minds:
            if (decider := mind.begin(run, decision)) is None:
                continue
            routing.route = decider.route
            try:
                outcome = await run.work(decider)
            except EdgedError as error:
                if (declined := decider.why_not(error)) is None:
                    raise
                raise declined from error
            if outcome is not None:
                return outcome
            routing.route = None
        return None

    async def _preview(self, run: Run, decision: Decision) -> tuple[str | None, Decided | Answered | None]:
        """(where, what) the first mind that does not pass on would do; None: that is not known."""
        for mind in self._minds:
            decider = mind.begin(run, decision)
            try:
                chosen = await decider.preview(run) if decider else Passed()
            except NotThere:
                chosen = Decided((ToolCall(UNABLE, {}),))
            if not isinstance(chosen, Passed):
                return mind.where, chosen
        return None, None

    def _decided(self, request: Request, facts: Facts) -> Decision:
        """The router's decision, with what it need not know."""
        return self._permitted(request, router.decide(facts), facts)

    def _permitted(self, request: Request, decision: Decision, facts: Facts) -> Decision:
        served = self._config.agents[request.agent].model in self._resources.served
        return msgspec.structs.replace(decision, served=served, may_leave=router.may_leave(facts))

    def _facts(
        self,
        request: Request,
        findings: tuple[Finding, ...],
        *,
        refused: Collection[str] = (),
        unaffordable: Collection[str] = (),
    ) -> Facts:
        """What the router decides from.

        Args:
            refused: upstreams that do not want this request.
            unaffordable: upstreams for whose budget it is too much.
        """
        agent = self._config.agents[request.agent]
        names = [name for name in self._config.upstreams_of(request.agent) if name not in refused]
        return Facts(
            asked=request.route,
            configured=agent.route,
            privacy=router.stricter(agent.privacy, request.privacy),
            when_offline=agent.when_offline,
            upstreams=tuple(
                msgspec.structs.replace(u, budget_left=False) if u.name in unaffordable else u
                for u in self._cloud.facts(names)
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


def _timed(run: Run, call: ToolCall) -> dict[str, JSON]:
    """A call's arguments with absolute times, and what the model said instead where that is something else. Where the
    clock is not set, the answer that there would be."""
    try:
        became = run.absolute(call).arguments
    except ClockUnset:
        try:
            return {"unable": run.clock_unset().text}
        except ToolFailed as error:  # the request would fail with it
            return {"unable": error.message}
    said = {name: value for name, value in call.arguments.items() if became[name] != value}
    return {"arguments": became, "said": said} if said else {}


def _chose(chosen: Decided, sure: Sureness, agent: Agent) -> Finding | None:
    """What a decision of the board's model shows, before anything is done."""
    if chosen.calls[0].name == ESCALATE.name:
        return Finding.ESCALATED
    calls = tuple(call for call in chosen.calls if call.name in agent.tools)
    return Finding.UNSURE if sure.lacks(calls, chosen.logprob) is not None else None
