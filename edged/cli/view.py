"""The daemon's documents as lines for people. Pure: a document in, lines out; what a newer or older daemon does not
tell is left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from edged.cli.common import call_text, line, size, span

Document = dict[str, Any]

LONGEST = 300  # characters of a result: a few lines of a terminal; --json has all of it
EPOCH_S = 1e9  # a `since` above it is a wall clock's; a smaller one counts from something else


def status_lines(state: Document) -> list[str]:
    """The daemon at a glance."""
    return [
        f"edged {state['version']} on {state['node']}, pid {state['pid']}, up {span(state['uptime_s'])}",
        f"memory  {memory_text(state['memory'])}",
        *pressure_lines(state.get("pressure")),
        f"requests  {queue_text(state['queue'])}",
        *fault_lines(state),
        *(f"you  {you_text(you)}" for you in (state.get("you"),) if you and you["role"]),
        *(f"model  {name}: {model_text(m, state['engine'].get(name))}" for name, m in state["models"].items()),
        *(f"prefixes  {snapshots_text(kept)}" for kept in (state.get("snapshots"),) if kept and kept["files"]),
        *(f"broker  {broker_text(link)}" for link in (state["mqtt"],) if link),
        *(f"upstream  {name}: {upstream_text(link)}" for name, link in state["link"].items()),
        *(f"http  {', '.join(listeners)}" for listeners in (_listeners(state),) if listeners),
    ]


def memory_text(memory: Document) -> str:
    """What is taken, allowed and left."""
    return (
        f"{size(memory['private_bytes'])} private, {size(memory['mapped_bytes'])} mapped, "
        f"budget {size(memory['budget_bytes'])}, "
        f"{size(memory['available_bytes'])} available on the board"
    )


def pressure_lines(pressure: Document | None) -> Iterator[str]:
    """What is given up, and why; nothing where nothing is."""
    for name, stair in (("pressure", pressure), ("board", (pressure or {}).get("board"))):
        if stair and stair["level"]:
            since = time.strftime("%H:%M:%S", time.localtime(stair["since"]))
            without = ", ".join(str(given_up) for given_up in stair.get("given_up", ()))
            yield f"{name}  level {stair['level']} since {since}, without {line(without)}: {line(str(stair['reason']))}"


def fault_lines(state: Document) -> Iterator[str]:
    """What does not work, and what to do about it."""
    for fault in state.get("faults", ()):
        what = f"{fault['about']} {fault.get('name', '')}".rstrip()
        todo = f"; {fault['do']}" if fault.get("do") else ""
        yield "fault  " + line(f"{what}: {fault['message']}{todo}")


def you_text(you: Document) -> str:
    """Who asks, and what the daemon takes them for."""
    return f"{you['client']}, role {you['role']}{', may manage' if you['manage'] else ''}"


def queue_text(queue: Document) -> str:
    """What runs, what there is by state, what is on its way out."""
    counted = ", ".join(f"{n} {name}" for name, n in queue.get("requests", {}).items()) or "none yet"
    sending = f"; {n} replies on their way" if (n := queue.get("outbox_waiting")) else ""
    return f"{queue.get('running', 0)} running; {counted}{sending}"


def model_text(model: Document, engine: Document | None) -> str:
    """State, size, users; what its engine does."""
    parts = [str(model["state"])]
    if server := model.get("server"):
        reason = f" ({server['reason']})" if server.get("reason") else ""
        parts[0] = f"{'answers' if server['up'] else 'not there'}{reason}"
        parts.append(f"{server['model']} at {server['base_url']}")
    if taken := model.get("measured_bytes") if model["state"] == "ready" else None:
        parts.append(f"{size(taken)} (predicted {size(model['predicted_bytes'])})")
    elif model.get("predicted_bytes"):
        parts.append(size(model["predicted_bytes"]))
    if model.get("in_use"):
        parts.append(f"in use by {model['in_use']}")
    if engine:
        parts.append(f"{engine['threads']} threads")
        if "provider" in engine:  # an embedding model
            parts.append(f"{engine['texts']} texts of {engine['prompt_tokens']} tokens on {_provider(engine)}")
        else:
            parts.append(f"{engine['generated_tokens']} tokens in {engine['decode_steps']} steps")
        parts += _rates(engine)
    return line(", ".join(parts))


def snapshots_text(kept: Document) -> str:
    """States of prefixes on the disk."""
    refused = f", {kept['refused']} refused" if kept["refused"] else ""
    return (
        f"{kept['files']} on the disk, {size(kept['bytes'])}; since the start {size(kept['written_bytes'])} written, "
        f"{kept['restored']} restored{refused}"
    )


def _provider(engine: Document) -> str:
    """What computes it, and why not what else there is."""
    others = [f"{name}: {why}" for name, why in engine["passed_over"].items()]
    return line(f"{engine['provider']} (not on {'; not on '.join(others)})") if others else str(engine["provider"])


def _rates(engine: Document) -> Iterator[str]:
    """Its measured speed by phase, once it was measured: of prompts, of one generation, of all of them together."""
    if prefill := engine.get("prefill_tokens_s"):
        yield f"prefill {prefill:.0f} tokens/s"
    if decode := engine.get("decode_tokens_s"):
        batch = engine.get("batch_tokens_s") or 0.0
        together = f" (all: {batch:.0f})" if batch >= decode * 1.05 else ""  # else it is the same figure again
        yield f"decode {decode:.0f} tokens/s{together}"


def broker_text(link: Document) -> str:
    """The broker and how we are connected to it."""
    how = f"MQTT {link['version']}" if link["connected"] else f"not connected ({link['error'] or 'connecting'})"
    return line(f"{link['broker']}: {how}")


def upstream_text(link: Document) -> str:
    """An upstream's state, its load and what it cost today."""
    parts = [str(link["state"])]
    if isinstance(since := link.get("since"), int | float) and since > EPOCH_S:
        parts[0] += f" since {time.strftime('%H:%M:%S', time.localtime(since))}"
    if link.get("reason"):
        parts[0] += f" ({link['reason']})"
    if "in_flight" in link:
        window = f" of at most {link['window']}" if link.get("window") is not None else ""
        parts.append(f"{link['in_flight']} requests there{window}")
    if link.get("paused_s"):
        parts.append(f"it wants to be left alone for {link['paused_s']:.0f} s")
    elif link["state"] == "down" and link.get("next_probe_s") is not None:
        parts.append(f"tried again in {link['next_probe_s']:.0f} s")
    if "tokens_today" in link:
        budget = f" of {link['daily_token_budget']}" if link.get("daily_token_budget") is not None else ""
        parts.append(f"{link['tokens_today']}{budget} tokens today")
    return line(", ".join(parts))


def event_line(event: Document) -> str:
    """An event: its name and what it tells."""
    told = " ".join(f"{key}={_short(value)}" for key, value in event.items() if key != "event")
    return f"{line(str(event.get('event')))}  {line(told)}"


def request_lines(document: Document) -> Iterator[str]:
    """A request: its reply, or how far it is."""
    named = f"  (id {line(document['id'])})" if document["id"] else ""
    yield f"{document['rid']}{named}"
    if "position" in document:
        yield f"status  {_progress(document)}"
        return
    yield f"status  {document['status']}{', by a weaker way than the one asked for' if document['degraded'] else ''}"
    if error := document["error"]:
        yield f"error   {error['code']}: {line(error['message'])}"
    if document["output"] is not None:
        yield f"answer  {document['output']}"
    for call in document["tool_calls"]:
        result = "" if call["ok"] else "failed: "
        yield f"called  {line(call_text(call['name'], call['arguments']))} -> {result}{_short(call['result'])}"
    if route := document["route"]:
        sure = "".join(f", {what} {route[what]:.2f}" for what in ("confidence", "score") if route.get(what) is not None)
        model = f", model {route['model']}" if route["model"] else ""
        yield f"route   {route['where']}{model}: {route['reason']}{sure}"
    yield f"took    {_took(document['timing'], document['usage'])}"


def _progress(document: Document) -> str:
    parts = [str(document["status"]).replace("_", " for a ")]
    if document["position"]:
        parts.append(f"{document['position']} before it")
    if document.get("eta_s") is not None:
        parts.append(f"about {span(document['eta_s'])} left")
    return ", ".join(parts)


def _took(timing: Document, usage: Document) -> str:
    parts = {name: timing.get(f"{name}_ms", 0.0) for name in ("queue", "load", "prefill", "decode", "tools", "other")}
    spent = ", ".join(f"{name} {ms:.0f}" for name, ms in parts.items() if ms >= 0.5)
    tokens = (
        f"; {usage['prompt_tokens']} prompt tokens, {usage['cached_tokens']} of them cached, "
        f"{usage['completion_tokens']} generated in {usage['decode_steps']} steps"
        if usage["prompt_tokens"]
        else ""
    )
    return f"{timing['total_ms']:.0f} ms{f': {spent}' if spent else ''}{tokens}"


def _listeners(state: Document) -> list[str]:
    return [str(listener) for listener in (state.get("http") or {}).get("listeners", ())]


def _short(value: object) -> str:
    """A value as JSON, not longer than LONGEST."""
    text = line(msgspec.json.encode(value).decode())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
