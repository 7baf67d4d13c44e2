"""What edged talks to: the broker and the upstreams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from edged import config
from edged.cli.common import span
from edged.config import CREDENTIAL, Config, Upstream
from edged.daemon.checks.finding import Finding, fail, ok, warn
from edged.errors import ConfigError
from edged.host import clock
from edged.transport.mqtt import tls
from edged.transport.mqtt.packets import Cause
from edged.transport.mqtt.settings import endpoint
from edged.upstreams import LocalServers

if TYPE_CHECKING:
    import aiohttp

PATIENCE_S = 5.0  # for one connection: longer than a slow link takes, short enough to sit and wait
MOST_BYTES = 2**20  # of a list of models; the longest of a public hub has a few hundred KiB
REFUSED = {401, 403}
RECENT_S = 600.0  # two clients with one id take turns of a minute or two; after some of them it is over
ANOTHER_ID = "give each daemon its own [node] id, or stop the other client; the broker's log has its address"
CREDENTIALS = "correct [mqtt]: user, password and certificates; the broker's log says more"
LOGS = "look into the broker's log, and into the daemon's: journalctl -u edged"
OURS = {Cause.REFUSED, Cause.UNREACHABLE}  # what user, password and certificates may be the cause of


async def broker(settings: Config, status: dict[str, Any] | None) -> Finding:
    """Whether something listens there; what a running daemon says of its own connection counts more."""
    if settings.mqtt is None:
        return ok("broker", "none is configured ([mqtt])")
    where = endpoint(settings.mqtt.url)
    link = status["mqtt"] if status else None
    if link and link["connected"]:
        told = f"{where}: the daemon is connected, MQTT {link['version']}"
        if (taken := link["taken_over"]) is not None and (ago := clock.wall() - taken) < RECENT_S:
            message = (
                f"{told}; {span(max(ago, 0))} ago another client with the id {_client_id(settings)} took its place"
            )
            return warn("broker", message, ANOTHER_ID)
        return ok("broker", told)
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(where.host, where.port)
        writer.close()
    except OSError as error:  # a timeout is one too
        reason = str(error) or f"no answer within {PATIENCE_S:.0f} s"
        return fail("broker", f"{where} cannot be reached: {reason}", "start the broker, or correct [mqtt] url")
    if await asyncio.to_thread(tls.speaks_tls, where, PATIENCE_S) != where.tls:
        told = tls.PLAIN if where.tls else tls.ENCRYPTED
        return fail("broker", f"{where} can be reached, and not as [mqtt] url says: {told}", "correct [mqtt] url")
    if link and link["error"]:
        do = ANOTHER_ID if link["cause"] == Cause.TAKEN_OVER else CREDENTIALS if link["cause"] in OURS else LOGS
        return fail("broker", f"{where} can be reached, but the daemon is not connected: {link['error']}", do)
    return ok("broker", f"{where} can be reached")


def _client_id(settings: Config) -> str:
    return f"edged-{settings.node.id}"


async def servers(settings: Config, status: dict[str, Any] | None) -> list[Finding]:
    """Every model that a server on this board runs, all at once."""
    served = LocalServers(settings.served)
    known = (status or {}).get("models", {})
    try:
        await asyncio.gather(*(served.look(name) for name in settings.served))
        return [server(name, model["server"], known.get(name, {})) for name, model in served.status().items()]
    finally:
        await served.stop()


def server(name: str, found: dict[str, Any], known: dict[str, Any]) -> Finding:
    """How a model's server is, as we found it; where we could not look, as the daemon did (it may have the key)."""
    told = f"{name}: {found['model']!r} at {found['base_url']}"
    if found["up"]:
        return ok("models", f"{told} answers")
    if known.get("server", {}).get("up"):
        return ok("models", f"{told}: the daemon says that it answers")
    do = f"start the server, or correct models.{name}"
    return fail("models", f"{told} cannot be used: {found['reason']}", do)


async def upstreams(settings: Config, status: dict[str, Any] | None) -> list[Finding]:
    """Every upstream, all at once."""
    if not settings.upstreams:
        return [ok("upstreams", "none is configured ([upstreams]): nothing leaves the board")]
    links = (status or {}).get("link", {})
    asked = [upstream(name, found, links.get(name)) for name, found in settings.upstreams.items()]
    return [finding for finding in await asyncio.gather(*asked) if finding is not None]


async def upstream(name: str, settings: Upstream, link: dict[str, Any] | None) -> Finding | None:
    """Whether one answers with the key it is given; None where there is none to give, which is a finding already."""
    key = ""
    if settings.api_key_file:
        try:
            key = config.api_key(settings.api_key_file)
        except ConfigError:
            return _of_the_service(name, settings.api_key_file, link)
    try:
        status, names = await _models(settings, key)
    except (OSError, ValueError) as error:
        reason = str(error) or f"no answer within {PATIENCE_S:.0f} s"
        do = "check the link; requests that need it do what [agents] when_offline says"
        return warn("upstreams", f"{name}: {settings.base_url} cannot be reached: {reason}", do)
    told = f"{name}: {settings.base_url} answers"
    if status in REFUSED:
        return fail("upstreams", f"{told}, but refuses the key ({status})", f"correct upstreams.{name}.api_key_file")
    if status >= 500:
        return warn("upstreams", f"{told} with {status}", "try again later, or ask who runs it")
    if names and settings.model not in names:
        offered = ", ".join(names[:5])
        do = f"correct upstreams.{name}.model; it offers {offered}{' and more' if len(names) > 5 else ''}"
        return warn("upstreams", f"{told}, but does not list model {settings.model!r}", do)
    return ok("upstreams", f"{told}{'' if names else f' ({status}: it lists no models)'}")


def _of_the_service(name: str, reference: str, link: dict[str, Any] | None) -> Finding | None:
    """An upstream whose key only the service gets: what the daemon found counts."""
    if not reference.startswith(CREDENTIAL):
        return None
    if link is None:
        message = f"{name}: {reference} is given to the service only, and no daemon answers that could say more"
        return warn("upstreams", message, "start the service, then run this again")
    reason = f", {link['reason']}" if link.get("reason") else ""
    told = f"{name}: the daemon says: {link['state']}{reason}"
    if link["state"] == "up":
        return ok("upstreams", told)
    return warn("upstreams", told, "check the link and the key; the log says more")


async def _models(settings: Upstream, key: str) -> tuple[int, list[str]]:
    """(HTTP status, names of its models). OSError, ValueError: no answer, or none of HTTP."""
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{settings.base_url.rstrip('/')}/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status, await _names(answer)
    except aiohttp.ClientError as error:
        raise ValueError(str(error) or type(error).__name__) from None


async def _names(answer: aiohttp.ClientResponse) -> list[str]:
    """The models of an OpenAI list; none where it is no such list."""
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            return []
    try:
        listed = msgspec.json.decode(body)
        return [str(model["id"]) for model in listed["data"]]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return []
