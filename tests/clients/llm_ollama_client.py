"""llm with llm-ollama: the command line lists each name once, asks agents and models, and embeds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steps import tried

LLM = str(Path(sys.executable).with_name("llm"))


def llm(folder: str, *words: str) -> str:
    """What the command prints."""
    environment = {**os.environ, "LLM_USER_PATH": folder}
    return subprocess.run([LLM, *words], check=True, capture_output=True, text=True, env=environment).stdout


async def main() -> None:
    """One after the other."""
    with tempfile.TemporaryDirectory() as folder:

        def once() -> bool:
            listed = llm(folder, "ollama", "models")
            return all(listed.count(f"{name}:latest") == 1 for name in ("small", "Lamp", "house"))

        def asked(name: str) -> bool:
            return llm(folder, "-m", f"{name}:latest", "tell a story").strip() == "one two three"

        def vectors() -> bool:
            return len(json.loads(llm(folder, "embed", "-m", "vectors:latest", "-c", "x"))) == 8

        await tried("each name is listed once", once)
        await tried("a prompt: a model", lambda: asked("small"))
        await tried("a prompt: an agent of edged", lambda: asked("house"))
        await tried("embed", vectors)


asyncio.run(main())
