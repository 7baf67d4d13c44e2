"""Calibrating an agent: its owner's own examples are decided, nothing is done, and what comes out says how far the
model's own sureness can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edged.access.gate import Gate
from edged.agent import calibration
from edged.agent.calibration import Known
from edged.config import Config, Tool
from edged.errors import BadRequest, Internal, ToolFailed, UnknownAgent
from edged.models.calibrations import Calibrations
from edged.requests.pipeline import Pipeline
from edged.tools.values import complete
from edged.types import JSON, Ask, Caller, Message, Preference, Priority, Request, ToolCall

Watch = Callable[[dict[str, JSON]], None]


class Calibrate:
    """Makes calibrations, one request of the caller's after the other.

    Args:
        tools: all there are, a live view.
    """

    def __init__(
        self, config: Config, tools: Mapping[str, Tool], pipeline: Pipeline, calibrations: Calibrations, gate: Gate
    ) -> None:
        self._config, self._tools = config, tools
        self._pipeline, self._calibrations, self._gate = pipeline, calibrations, gate

    async def agent(self, caller: Caller, name: str, watch: Watch) -> JSON:
        """Decide all examples of an agent's tools and keep what they show: {agent, examples, right, wrong_writes, line,
        held, file}. line: of "auto"; held: how many calls that write are below it.

        Args:
            watch: gets {state: "deciding", done, total}.

        Raises:
            Forbidden: the caller may not manage.
            BadRequest: there are too few examples, or a server runs the model.
            EdgedError: as the model says.
        """
        with self._gate.managing(caller, "calibrate agents", agent=name):
            expected = self._examples(name)
            known: list[Known] = []
            for done, (text, call) in enumerate(expected):
                watch({"state": "deciding", "done": done, "total": len(expected)})
                if (decided := await self._decided(caller, name, text)) is not None:
                    known.append(self._judged(*decided, call))
            try:
                made = calibration.fit(known, await self._calibrations.shipped(name))
            except ValueError as error:
                raise BadRequest(f"agent {name!r}: {error}: for the other examples it called nothing") from None
            try:
                path = await self._calibrations.keep(name, made)
            except OSError as error:
                raise Internal(f"the calibration cannot be kept: {error}") from None
            sure = [(made.calls.probability(each.score), each) for each in known if each.writes]
            return {
                "agent": name,
                "examples": len(expected),
                "right": sum(each.right for each in known),
                "wrong_writes": sum(each.wrong_write for each in known),
                "line": made.auto,
                "held": sum(probability < made.auto for probability, _ in sure),
                "file": str(path),
            }

    def _examples(self, name: str) -> list[tuple[str, ToolCall]]:
        """Requests, and the calls that they mean."""
        if name not in self._config.agents:
            raise UnknownAgent(f"no agent {name!r}; configured are {', '.join(self._config.agents)}")
        agent = self._config.agents[name]
        if agent.model in self._config.served:
            raise BadRequest(f"agent {name!r}: its model runs in a server, and those do not tell how sure they are")
        tools = [(tool, self._tools[tool]) for tool in agent.tools if tool in self._tools]
        examples = [(each.input, ToolCall(tool, each.arguments)) for tool, known in tools for each in known.examples]
        if len(examples) < calibration.LEAST:
            problem = f"its tools have {len(examples)} examples, and a calibration takes {calibration.LEAST}"
            raise BadRequest(f"agent {name!r}: {problem}: write more requests into `examples` of [tools.NAME]")
        return examples

    async def _decided(self, caller: Caller, agent: str, text: str) -> tuple[list[ToolCall], float] | None:
        """The calls of a decision and its score; None: it did not end, or nothing was sampled for it."""
        request = Request(
            agent=agent, messages=(Message("user", text),), route=Preference.LOCAL, priority=Priority.BATCH
        )
        try:
            told = await self._pipeline.explain(Ask(request=request, caller=caller), decide=True, measuring=True)
        except ToolFailed:
            return None
        if (first := told["call"]) is None or first["score"] is None:
            return None
        # as the model said it: examples may hold relative times
        calls = [ToolCall(each["name"], {**each["arguments"], **each.get("said", {})}) for each in told["calls"]]
        return calls, first["score"]

    def _judged(self, calls: list[ToolCall], score: float, expected: ToolCall) -> Known:
        called = [call for call in calls if call.name in self._tools]
        wrong = [call for call in called if not self._is(call, expected)]
        return Known(
            score,
            right=len(called) == 1 and not wrong,
            called=bool(called),
            wrong_write=any(self._tools[call.name].is_write for call in wrong),
            writes=any(self._tools[call.name].is_write for call in called),
        )

    def _is(self, call: ToolCall, expected: ToolCall) -> bool:
        """Whether it is this call; an argument that is left out equals its default."""
        if call.name != expected.name:
            return False
        parameters = self._tools[call.name].parameters
        try:
            return complete(parameters, call.arguments) == complete(parameters, expected.arguments)
        except ToolFailed:
            return False
