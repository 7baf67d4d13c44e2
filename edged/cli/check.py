"""`edged check`: the configuration without a daemon."""

from __future__ import annotations

import asyncio
import sys

from edged import config
from edged.cli.common import AsJson, ConfigFile
from edged.cli.outcome import EX_CONFIG, print_json, reporting_errors


def check(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check the configuration, its tools and models, without starting anything."""
    from edged.daemon.checks import check_all  # only here: everything the daemon is made of

    with reporting_errors(as_json):
        settings = config.load(str(file) if file else None)
        problems = asyncio.run(check_all(settings))
    if as_json:
        counts = {"agents": len(settings.agents), "tools": len(settings.tools), "models": len(settings.models)}
        error = {"code": "config", "message": problems[0], "retryable": False} if problems else None
        print_json({"files": settings.files, **counts, "problems": problems, "error": error})
    elif not problems:
        print(
            f"{settings.files[0]}: {len(settings.agents)} agents, {len(settings.tools)} tools, "
            f"{len(settings.models)} models: all right"
        )
    if problems:
        print("\n".join(problems), file=sys.stderr)
        raise SystemExit(EX_CONFIG)
