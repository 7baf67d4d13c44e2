"""llama.cpp's log: kept in a small ring instead of being printed, to say why something failed."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

# Lines kept. A failed load writes two or three; the rest is context for a debugger.
KEPT_LINES = 64
# What one reason shows of them: the last ones name the cause, the first repeat it in general words.
SHOWN_LINES = 3
# ggml_log_level: 3 is a warning, 4 an error, 5 continues the line before.
WARNING, ERROR, CONTINUED = 3, 4, 5


class NativeLog:
    """Collects warnings and errors. The one instance is installed for the process's life: llama.cpp has one log
    callback, calls it from any thread, and would call freed memory if the callback object were collected."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT_LINES)
        self._callback: Any = None
        self._collecting = False

    def install(self) -> None:
        """Make llama.cpp log here; does nothing the second time."""
        import llama_cpp

        if self._callback is None:
            self._callback = llama_cpp.llama_log_callback(self._receive)
            llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def clear(self) -> None:
        """Forget what was logged, before something that may fail."""
        self._lines.clear()

    def reason(self, otherwise: str) -> str:
        """The last errors (else warnings) as one line for a person, or `otherwise` where there are none."""
        lines = list(self._lines)
        chosen = [t for level, t in lines if level == ERROR] or [t for _, t in lines]
        texts = [t.strip() for t in chosen if t.strip()]
        return "; ".join(texts[-SHOWN_LINES:]) or otherwise

    def _receive(self, level: int, text: bytes | None, _user_data: object) -> None:
        try:
            line = (text or b"").decode("utf-8", "replace")
            if level == CONTINUED:
                if self._collecting and self._lines:
                    before_level, before = self._lines.pop()
                    self._lines.append((before_level, before + line))
                return
            self._collecting = level in (WARNING, ERROR)
            if self._collecting:
                self._lines.append((level, line))
        except Exception:  # noqa: S110  # an exception cannot cross C frames; a lost log line is the lesser harm
            pass


NATIVE_LOG = NativeLog()
