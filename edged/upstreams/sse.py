"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as an answer needs them:
the data. Pure: bytes in, texts out."""

from __future__ import annotations


class Events:
    """Bytes of a stream into the data of its events. Lines end with LF or CRLF; what is incomplete stays inside, so a
    character that is split between two pieces is whole when it is read."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of the line that has not ended
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that end in `piece`. ValueError: it is not UTF-8."""
        self._rest += piece
        if b"\n" not in piece:  # a long line may come in thousands of pieces: it is looked through once
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [data for line in lines if (data := self._line(bytes(line).removesuffix(b"\r"))) is not None]

    def end(self) -> list[str]:
        """The data of a last event without the empty line that should end it: a server that closes right after it has
        said it all the same."""
        return self.feed(b"\n\n")

    def _line(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) if data else None
        field, _, value = line.partition(b":")  # a comment is a line without a field before the colon
        if field == b"data":
            self._data.append(value.removeprefix(b" ").decode())
        return None
