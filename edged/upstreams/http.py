"""One server of the OpenAI API, over HTTP. aiohttp comes into memory with the first exchange."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec.structs import replace

from edged import __version__, config
from edged.config import Upstream
from edged.errors import ConfigError
from edged.host import clock
from edged.host.clock import Stopwatch
from edged.types import Chat, ChatAnswer
from edged.upstreams import answers, request
from edged.upstreams.answers import Assembly, Events, Parsed
from edged.upstreams.failures import (
    Complaint,
    ExchangeFailed,
    NothingStreamed,
    complaint,
    is_html,
    printable,
    retry_after_s,
)
from edged.upstreams.link import Sign
from edged.upstreams.request import Spelling

if TYPE_CHECKING:
    import aiohttp

OnText = Callable[[str], None]
OnBody = Callable[[bytes], None]

MAX_ANSWER_BYTES = 4 * 2**20  # far more than the longest answer, and than the longest list of models
MAX_STREAM_BYTES = 32 * 2**20  # a streamed answer is a hundred times its text
MAX_ERROR_BYTES = 64 * 2**10  # of an error no more is needed than its first sentences
# Connections wait so long for the next request. Uvicorn closes after 5 s, and a request that meets the closing is lost.
KEEP_ALIVE_S = 4.0
OK = 200
NO_LIST = {404, 405, 501}  # a server without a list of models is there all the same
LOADING_S = (
    1.0  # until a server that loads its model is asked again: a load takes seconds to minutes, a refusal nothing
)


class Endpoint:
    """Speaks with one server. Keeps nothing but connections, and what its answers have shown: how this server wants
    requests spelled, and whether its model's text begins in a thought, which only the tag that closes it tells.

    Args:
        connector: makes the connections of a server on this board; None: it is anywhere, and proxies count.
        waits: as long as the latter is not known, the pieces of an answer wait for its end.
    """

    def __init__(
        self,
        settings: Upstream,
        connector: Callable[[float], aiohttp.BaseConnector] | None = None,
        *,
        waits: bool = False,
    ) -> None:
        self._settings = settings
        self._connector = connector
        self._url = settings.base_url.rstrip("/")
        self._client: aiohttp.ClientSession | None = None
        self._spelling = Spelling()
        self._waits = waits
        self._unopened: bool | None = None  # None: not known yet

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client:
            await client.close()

    async def ask(
        self,
        chat: Chat,
        on_text: OnText | None = None,
        on_body: OnBody | None = None,
        on_thought: OnText | None = None,
    ) -> ChatAnswer:
        """One completion; streamed where `on_text` wants the pieces. The pieces may turn out to be more than the
        answer's text where the server's model was not known to begin in a thought; see `waits`. A server that is
        loading its model is waited for, as long as for an answer.

        Args:
            on_body: gets what is about to be sent.
            on_thought: gets the pieces of what the model thinks before it answers, where the answer is streamed.

        Raises:
            ExchangeFailed: no answer came, or the server refuses this request.
            ModelUnavailable: no server could take it; nothing was sent.
        """
        watch = Stopwatch()
        spelling = self._spelling
        while True:
            try:
                done = await self._ask(chat, spelling, Hearing(on_text, on_thought), on_body, watch)
            except Complaint as complained:
                if complained.loading and watch.ms() < 1000 * self._settings.timeout_s:
                    await asyncio.sleep(LOADING_S)
                    continue
                other = request.respelled(spelling, chat, complained.words)
                if other is None:
                    raise complained.meaning() from None
                spelling = other
            except NothingStreamed:
                spelling = replace(spelling, streams_calls=False)
                if request.is_streamed(chat, spelling):  # calls are not what it is about
                    raise
            else:
                self._spelling = spelling
                return done

    async def probe(self) -> tuple[str, ...] | None:
        """Find out whether the server is there and takes the key, for nothing: ask for its models. Which ones it lists
        says nothing about a cloud: many names it takes are in no list. None: it has no list.

        Raises:
            ExchangeFailed: it is not, or does not.
        """
        key = self._key()
        try:
            async with self._exchange("GET", "/models", key) as response:
                if response.status in NO_LIST:
                    return None
                if response.status != OK:
                    raise await self._complaint(response, key)
                return answers.listed(await _read(response, MAX_ANSWER_BYTES))
        except Complaint as complained:
            if complained.loading:  # a request waits for it
                return None
            meaning = complained.meaning()
            raise ExchangeFailed(Sign.WEAK, meaning.reason) if meaning.sign is Sign.GOOD else meaning from None

    async def _ask(
        self, chat: Chat, spelling: Spelling, hearing: Hearing, on_body: OnBody | None, watch: Stopwatch
    ) -> ChatAnswer:
        key = self._key()
        stream = hearing.on_text is not None and request.is_streamed(chat, spelling)
        body = request.body(chat, self._settings.model, spelling, stream=stream)
        names = [tool.name for tool in chat.tools] if chat.may_call else []
        if on_body:
            on_body(body)
        once = {"Idempotency-Key": request.idempotency_key(chat, spelling)}
        async with self._exchange("POST", "/chat/completions", key, body, once) as response:
            if response.status != OK:
                raise await self._complaint(response, key)
            if not stream or response.content_type == "application/json":  # not all servers stream
                parsed = answers.whole(await _read(response, MAX_ANSWER_BYTES), secret=key, names=names, stop=chat.stop)
                first_ms = watch.ms()
                hearing.whole(parsed)
            else:
                hearing.wait(self._waits and self._unopened is None)
                assembly = Assembly(secret=key, names=names, stop=chat.stop, unopened=bool(self._unopened))
                parsed, first_ms = await self._stream(response, assembly, hearing, watch)
        if parsed.shows_beginning:
            self._unopened = self._unopened or parsed.unopened
        return _answered(chat, parsed, first_ms, watch.ms())

    async def _stream(
        self, response: aiohttp.ClientResponse, assembly: Assembly, hearing: Hearing, watch: Stopwatch
    ) -> tuple[Parsed, float]:
        """The answer, and when it began."""
        first_ms: float | None = None
        try:
            async with contextlib.aclosing(_events(response)) as events:
                async for data in events:
                    text = assembly.take(data)
                    if assembly.begun and first_ms is None:
                        first_ms = watch.ms()
                    hearing.hear(text, assembly.thoughts())
                    if assembly.done:
                        break
        except Complaint as complained:
            if assembly.begun:  # too late for another spelling
                raise complained.meaning() from None
            raise
        except Exception as error:
            if self._meaning(error) is None or not assembly.finished:
                raise
            # The answer is whole; what is missing is only how many tokens it had.
        if assembly.finished:
            hearing.hear(assembly.rest(), assembly.thoughts())
        parsed = assembly.parsed()
        hearing.end(parsed)
        return parsed, watch.ms() if first_ms is None else first_ms

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, path: str, key: str | None, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response whose head has come. What goes wrong until the block ends is raised as ExchangeFailed."""
        import aiohttp

        client = self._connections()

        async def send(sent: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            # Here, because a header of that name beside an entry in ~/.netrc is an error for aiohttp.
            if key is not None:
                sent.headers["Authorization"] = f"Bearer {key}"
            try:
                return await handler(sent)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A kept connection that the server was just closing: once more, on a new one. Should it have read the
                # request all the same, it is the same one by its key. For a GET aiohttp does so by itself.
                if body is None:
                    raise
                return await handler(sent)

        head = {"Accept": "application/json, text/event-stream", **(headers or {})}
        if body is not None:
            head["Content-Type"] = "application/json"
        try:
            async with client.request(
                method, self._url + path, data=body, headers=head, allow_redirects=False, middlewares=(send,)
            ) as response:
                yield response
        except Exception as error:
            if (failed := self._meaning(error)) is None:
                raise
            raise failed from None  # the error's own text and chain say less, and are not ours to vouch for

    def _connections(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._client is None:
            settings = self._settings
            connector: aiohttp.BaseConnector
            if self._connector is None:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)  # the window is the limit
            else:
                connector = self._connector(KEEP_ALIVE_S)
            self._client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"edged/{__version__}"},
                timeout=aiohttp.ClientTimeout(
                    total=settings.timeout_s,
                    connect=settings.connect_timeout_s,  # with the look-up of the name
                    sock_read=settings.first_byte_timeout_s,  # until the first byte, and between any two
                ),
                trust_env=self._connector is None,  # what is on this board is never asked through a proxy
            )
        return self._client

    def _key(self) -> str | None:
        """The key, as it is now. ExchangeFailed: there is none where there should be one."""
        if self._settings.api_key_file is None:
            return None
        try:
            return config.api_key(self._settings.api_key_file)
        except ConfigError as error:
            raise ExchangeFailed(Sign.REFUSED, f"the key: {error}") from None

    async def _complaint(self, response: aiohttp.ClientResponse, key: str | None) -> Exception:
        """What a status other than 200 says."""
        status, headers = response.status, response.headers
        if 300 <= status < 400:
            return ExchangeFailed(
                Sign.WEAK, f"HTTP {status}: sent on to {_host(headers.get('Location', ''))}; a login page?"
            )
        if status < 400:
            return ExchangeFailed(Sign.WEAK, f"HTTP {status}, which is no answer")
        body = await _beginning(response, MAX_ERROR_BYTES)
        pause_s = retry_after_s(headers.get("Retry-After"), headers.get("Date"), clock.wall())
        return complaint(status, body, secret=key, pause_s=pause_s)

    def _meaning(self, error: Exception) -> ExchangeFailed | None:
        """What an exception of aiohttp means; None for any other."""
        import aiohttp

        settings = self._settings
        match error:
            case aiohttp.ConnectionTimeoutError():
                return ExchangeFailed(Sign.WEAK, f"no connection within {settings.connect_timeout_s:g} s")
            case aiohttp.SocketTimeoutError():
                return ExchangeFailed(Sign.WEAK, f"not a byte for {settings.first_byte_timeout_s:g} s")
            case TimeoutError():
                return ExchangeFailed(Sign.WEAK, f"no whole answer within {settings.timeout_s:g} s")
            case aiohttp.ClientConnectorError() | aiohttp.ServerFingerprintMismatch():
                return ExchangeFailed(Sign.STRONG, str(error))
            case aiohttp.ClientHttpProxyError():
                return ExchangeFailed(Sign.STRONG, f"the proxy answers HTTP {error.status}")
            case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
                return ExchangeFailed(Sign.WEAK, "the connection was cut")
            case aiohttp.ClientError():
                return ExchangeFailed(Sign.WEAK, f"{type(error).__name__}: not HTTP as it should be")
            case _:
                return None


class Hearing:
    """Who hears the pieces of an answer while it comes."""

    def __init__(self, on_text: OnText | None, on_thought: OnText | None) -> None:
        self.on_text, self._on_thought = on_text, on_thought
        self._waiting: list[str] | None = None  # None: pieces are heard at once

    def wait(self, waits: bool) -> None:
        """From here on. waits: pieces of the text are heard when the whole answer is there."""
        self._waiting = [] if waits else None

    def whole(self, parsed: Parsed) -> None:
        """An answer that did not come in pieces."""
        self.hear(parsed.text, parsed.reasoning)

    def hear(self, text: str, thoughts: str) -> None:
        """More of it."""
        if thoughts and self._on_thought:
            self._on_thought(thoughts)
        if text and self._waiting is not None:
            self._waiting.append(text)
        elif text and self.on_text:
            self.on_text(text)

    def end(self, parsed: Parsed) -> None:
        """Nothing more comes."""
        waiting, self._waiting = self._waiting or [], None
        if parsed.unopened and waiting:
            self.whole(parsed)
        else:
            for text in waiting:
                self.hear(text, "")


def _host(url: str) -> str:
    """Of another server, which may send anything."""
    with contextlib.suppress(ValueError):
        return printable(urlsplit(url).hostname or "another page")
    return "nowhere"


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body. ExchangeFailed: it is too long."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise ExchangeFailed(Sign.WEAK, f"an answer of more than {limit} bytes")
    return bytes(body)


async def _beginning(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The first bytes of the body; an error whose text does not come is an error all the same."""
    import aiohttp

    body = bytearray()
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
        async for piece in response.content.iter_any():
            body += piece
            if len(body) >= limit:
                break
    return bytes(body[:limit])


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[str, None]:
    """The data of a stream's events. ExchangeFailed: it is none, or too long."""
    events = Events()
    size = 0
    try:
        async for piece in response.content.iter_any():
            if not size and is_html(piece):
                raise ExchangeFailed(Sign.WEAK, "not an answer of the OpenAI API: an HTML page")
            size += len(piece)
            if size > MAX_STREAM_BYTES:
                raise ExchangeFailed(Sign.WEAK, f"a stream of more than {MAX_STREAM_BYTES} bytes")
            for data in events.feed(piece):
                yield data
        for data in events.end():
            yield data
    except UnicodeDecodeError:
        raise ExchangeFailed(Sign.WEAK, "the stream is not UTF-8") from None


def _answered(chat: Chat, parsed: Parsed, first_ms: float, total_ms: float) -> ChatAnswer:
    """With estimates where the server did not count."""
    prompt, completion = parsed.prompt_tokens, parsed.completion_tokens
    if prompt is None:
        prompt = request.estimated_tokens(request.prompt_characters(chat))
    if completion is None:
        written = len(parsed.text) + sum(len(call.name) + len(call.arguments) for call in parsed.calls)
        completion = request.estimated_tokens(written)
    return ChatAnswer(
        text=parsed.text,
        calls=parsed.calls,
        finish=parsed.finish,
        prompt_tokens=prompt,
        cached_tokens=parsed.cached_tokens or 0,
        completion_tokens=completion,
        first_token_ms=first_ms,
        total_ms=total_ms,
        logprobs=parsed.logprobs,
        reasoning=parsed.reasoning,
    )
