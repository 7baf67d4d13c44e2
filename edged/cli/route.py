"""`edged route`: where a request would be answered, and why, in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edged.agent.router import Go, Reason
from edged.cli import complete
from edged.cli.common import AgentName, AsJson, ConfigFile, RouteName, Socket, call_text, line, shown
from edged.cli.connection import daemon
from edged.cli.outcome import print_json

# What a person gets for each word of the router; edged/router.py says what makes it choose one.
WHY = {
    Reason.LOCAL_OK: "nothing speaks against answering on the board",
    Reason.LOCAL_ASKED: "the board was asked for",
    Reason.PRIVATE: "it would better go to the cloud, and nothing of it may leave the board",
    Reason.CLOUD_ASKED: "the cloud was asked for",
    Reason.CONTEXT: "it does not fit into what the board's model reads at once",
    Reason.ESCALATED: "the board's model chose to hand it over",
    Reason.UNSURE: "the model was not sure enough of its call",
    Reason.LOCAL_FAILED: "the board's model did not manage it",
    Reason.NO_LOCAL_MODEL: "the board's model cannot be loaded now",
    Reason.OFFLINE: "it needs the cloud, and no upstream can be reached",
    Reason.OVER_BUDGET: "it needs the cloud, and today's tokens are spent",
    Reason.PRESSURE: "the board is short of memory, and leaves to the cloud what it may",
}


def route(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What would be asked.")],
    agent: AgentName = None,
    where: RouteName = None,
    privacy: Annotated[str | None, typer.Option(help="device or any.", autocompletion=complete.privacies)] = None,
    decide: Annotated[
        bool, typer.Option("--decide", help="Also ask the model which call it would make; nothing is called.")
    ] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Say where a request would be answered and why, without asking it."""
    given = {"agent": agent, "route": where, "privacy": privacy}
    params = {name: value for name, value in given.items() if value is not None}
    with daemon(socket, config_file, as_json) as client:
        told = client.call("route.explain", {"input": text, "decide": decide, **params})
    if as_json:
        print_json(told)
    else:
        print(shown("\n".join(sentences(told))))


def sentences(told: dict[str, Any]) -> Iterator[str]:
    """The decision, what it was made from, and the upstreams it looked at."""
    yield f"{told['go']}: {_what(told)}: {_why(told)}."
    if error := told["error"]:
        yield f"It would end with {error['code']}: {line(error['message'])}"
    if told["degraded"]:
        yield "This is a weaker way than the one asked for: the reply will say so (degraded)."
    first = told.get("mind")
    if first not in (None, "local", "cloud"):
        yield f"Mind {first} comes before that and takes it."
    if call := told["call"]:
        mine = first in (None, "local")
        yield f"{'The model' if mine else 'It'} would {_chosen(told)}{_sure(call) if mine else ''}."
        for each in told.get("calls") or [call]:
            for name, said in each.get("said", {}).items():
                yield line(f"It said {name}={_json(said)}, which is {_json(each['arguments'][name])}.")
        if unable := call.get("unable"):
            yield f"The answer would be: {line(unable)}"
    yield (
        f"agent {told['agent']}, model {told['model']}: route {told['route']}, privacy {told['privacy']}, "
        f"when offline {told['when_offline']}, {_threshold(told)}"
    )
    if masked := told.get("masked"):
        found = ", ".join(f"{number} {kind}" for kind, number in masked.items())
        yield f"An upstream would get placeholders for what is in it: {found}."
    for upstream in told["upstreams"]:
        yield f"upstream {upstream['name']}: {_upstream(upstream)}"


def _chosen(told: dict[str, Any]) -> str:
    """The model's choice: what stands beside the tools is no tool of anybody's (edged/agent/styles.py)."""
    others = {"reply": "answer in words", "escalate": "hand it over to the cloud", "unable": "say that it cannot do it"}
    calls = told.get("calls") or [told["call"]]
    made = ", then ".join(line(call_text(call["name"], call["arguments"])) for call in calls)
    return others.get(calls[0]["name"]) or f"call {made}"


def _sure(call: dict[str, Any]) -> str:
    """Without a calibration nobody knows how likely it is right; the score says how it compares with others."""
    if call["confidence"] is not None:
        return f", with confidence {call['confidence']:.2f}"
    return "" if call.get("score") is None else f", with score {call['score']:.2f}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _what(told: dict[str, Any]) -> str:
    return {
        Go.LOCAL: f"model {told['model']} would answer on the board"
        if told["reason"] != Reason.UNSURE
        else "edged would ask whether to do it",
        Go.CLOUD: f"upstream {told['upstream']} would answer",
        Go.WAIT: "it would wait until an upstream takes it",
        Go.FAIL: "it would get no answer",
    }.get(told["go"], "")


def _why(told: dict[str, Any]) -> str:
    why: str = WHY.get(told["reason"], told["reason"])
    if told["reason"] == Reason.UNSURE and (call := told["call"]) and (least := told.get("line")):
        why += f" ({call[least['counts']]:.2f}, and the agent wants {least['least']:.2f})"
    return why


def _threshold(told: dict[str, Any]) -> str:
    if (least := told.get("line")) is None:
        return "calls of any confidence are made"
    what = "writing calls" if told["min_confidence"] == "auto" else "calls"
    where = "go to the cloud" if told["privacy"] != "device" and told["upstreams"] else "are asked about"
    return f"{what} below {least['counts']} {least['least']:.2f} {where}"


def _upstream(upstream: dict[str, Any]) -> str:
    if not upstream["up"]:
        return line(f"cannot be used: {upstream['state']}{_reason(upstream)}")
    limits = (
        ("it has as many requests as it bears", not upstream["room"]),
        (
            "today's tokens are spent",
            not upstream["budget_left"],
        ),
    )
    said = [text for text, holds in limits if holds] or ["can be used"]
    return line(f"{' and '.join(said)} ({upstream['state']}{_reason(upstream)})")


def _reason(upstream: dict[str, Any]) -> str:
    return f", {upstream['reason']}" if upstream["reason"] else ""
