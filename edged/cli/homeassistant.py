"""`edged homeassistant`: what the broker keeps of this node for Home Assistant."""

from __future__ import annotations

import sys

import typer

from edged.cli.common import AsJson, ConfigFile
from edged.cli.connection import load_config
from edged.cli.outcome import Stop, print_json, reporting_errors
from edged.config import HomeAssistant

app = typer.Typer(name="homeassistant", help="This node as a device of Home Assistant.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """This node as a device of Home Assistant."""


@app.command()
def remove(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Take the device with all its entities out of Home Assistant. The daemon need not run."""
    from edged.transport import mqtt  # only here: the rest of the command line needs no broker
    from edged.transport.mqtt.forget import forget
    from edged.transport.mqtt.homeassistant import retained

    with reporting_errors(as_json):
        settings = load_config(config_file)
        if settings.mqtt is None:
            raise Stop("config", f"{settings.files[0]}: there is no [mqtt] table, so no broker keeps anything")
        home = settings.homeassistant or HomeAssistant()
        topics = retained(settings.state_dir, settings.node.id, home.prefix, settings.agents)
        try:
            forget(mqtt.broker(settings), topics)
        except OSError as error:
            raise Stop("unreachable", f"the broker at {settings.mqtt.url}: {error.strerror or error}") from None
    if as_json:
        print_json({"removed": topics, "discovery": home.discovery})
    else:
        print(f"removed from Home Assistant: edged {settings.node.id}")
    if home.discovery:
        print("note: homeassistant.discovery is true: a daemon that starts describes the device again", file=sys.stderr)
