"""Secrets that cannot be read, or hold what no secret is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.config import Config, Http, Model, Mqtt, Node, Upstream
from edged.daemon.checks import secrets
from edged.daemon.checks.finding import WHOLE, About, Inspection, Level, Subject
from edged.types import SERVER_ENGINE

URL = "http://127.0.0.1:8080/v1"


def settings(folder: Path, reference: str) -> Config:
    """One that refers to a secret wherever it can."""
    return Config(
        node=Node(id="n", state_dir=str(folder), runtime_dir=str(folder)),
        mqtt=Mqtt(username="u", password_file=reference),
        http=Http(api_keys_file=reference),
        upstreams={"cloud": Upstream(base_url=URL, model="m", api_key_file=reference)},
        models={"npu": Model(engine=SERVER_ENGINE, base_url=URL, model="m", api_key_file=reference)},
    )


def test_secret_that_is_missing_is_a_failure_of_what_needs_it(tmp_path: Path) -> None:
    """Broker and API keys are the whole's, a key is an upstream's or a model's."""
    found = list(secrets.look(Inspection(settings=settings(tmp_path, f"{tmp_path}/none"))))
    assert {finding.key: finding.subject for finding in found} == {
        "mqtt.password_file": WHOLE,
        "http.api_keys_file": WHOLE,
        "upstreams.cloud.api_key_file": Subject(About.UPSTREAM, "cloud"),
        "models.npu.api_key_file": Subject(About.MODEL, "npu"),
    }
    assert {finding.level for finding in found} == {Level.FAIL}
    assert all(f"{tmp_path}/none" in finding.message for finding in found)


def test_what_is_in_a_secret_is_looked_at_and_never_shown(tmp_path: Path) -> None:
    """A key that no header carries, a list of keys that is none."""
    (tmp_path / "s").write_text("geheim für alle\n")
    found = list(secrets.look(Inspection(settings=settings(tmp_path, f"{tmp_path}/s"))))
    wrong = {finding.key for finding in found if finding.level is Level.FAIL}
    assert wrong == {"http.api_keys_file", "upstreams.cloud.api_key_file", "models.npu.api_key_file"}
    assert not [finding for finding in found if "geheim" in str(finding)]


def test_credential_is_the_services_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the daemon can say that it is missing."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    made = settings(tmp_path, "credential:key")
    assert {finding.level for finding in secrets.look(Inspection(settings=made))} == {Level.WARN}
    assert {finding.level for finding in secrets.look(Inspection(settings=made, in_service=True))} == {Level.FAIL}


def test_what_another_user_may_not_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may be able to."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    found = secrets.look(Inspection(settings=settings(tmp_path, f"{tmp_path}/none")))
    assert {finding.level for finding in found} == {Level.WARN}
