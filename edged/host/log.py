"""Logs: one line for each thing that happens, on stderr, with the request's rid wherever there is one.

A line that a person or a program looks for has a stable name: `extra={"event": "model_loaded"}` appears as
`event=model_loaded` after the text. Texts may change, names do not; each room's README lists its own.

Under systemd a line starts with its priority (sd-daemon(3)), and journald adds the time; elsewhere the time is printed.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
# What a terminal that shows the log would act upon; a line's end is kept, for tracebacks.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    """`message event=name key=value ... rid=...`"""

    def __init__(self, *, under_systemd: bool) -> None:
        super().__init__()
        self._under_systemd = under_systemd

    def format(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in STANDARD}
        fields = {"event": extra.pop("event"), **extra} if "event" in extra else extra
        if (rid := request_id.get()) and "rid" not in fields:
            fields["rid"] = rid
        text = " ".join([f"{record.name}: {record.getMessage()}", *(f"{k}={_word(v)}" for k, v in fields.items())])
        text = text.translate(CONTROL)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._under_systemd:  # each line needs its priority, or a traceback becomes lines of another one
            priority = f"<{PRIORITIES.get(record.levelno, 6)}>"
            return "\n".join(priority + line for line in text.splitlines())
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{stamp}.{int(record.msecs):03d} {record.levelname.lower():7} {text}"


def _word(value: object) -> str:
    """A field's value as one word; what holds spaces or newlines is quoted, so that an event stays one line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() for c in text) else text


def set_up(*, under_systemd: bool, level: int = logging.INFO) -> None:
    """Configure the root logger, once, for a daemon."""
    if isinstance(sys.stderr, io.TextIOWrapper):  # journald reads UTF-8; half a surrogate pair must not cost the line
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(under_systemd=under_systemd))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
