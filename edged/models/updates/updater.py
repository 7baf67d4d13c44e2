"""A new file for a model, taken only when it has shown that it works.

Pulled beside the old one, loaded within the budget under a name of its own, asked its self-test, written down, switched
to between requests. Until it is written down the old file is in force, afterwards the new one, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path

from msgspec import Struct, structs

from edged.agent.dialects.chat_template import Dialect
from edged.engines import registry
from edged.errors import BadRequest, Busy, EdgedError, Internal, ModelUnavailable
from edged.host import fault_points
from edged.interfaces import Engine, Residents
from edged.models import catalog, pull
from edged.models.catalog import ModelFile
from edged.models.pull import Progress
from edged.models.updates import selftest
from edged.models.updates.fetch import Fetched, fetch
from edged.models.updates.ledger import Attempt, Ledger, Record, Version, forget_file
from edged.types import JSON, ModelSpec, SelfTest

log = logging.getLogger("edged.models.updates")

CANDIDATE = "{name}@next"  # no configured model's name has an @
BUSY_RETRY_S = 60.0  # an update takes minutes

Watch = Callable[[dict[str, JSON]], None]
Fetch = Callable[[ModelFile, Callable[[Progress], None]], Awaitable[Fetched]]


class Target(Struct, frozen=True):
    """What a source means: the file, and what it has to get right."""

    source: str
    file: ModelFile
    tests: tuple[SelfTest, ...] = ()


def locate(source: str, models_dir: Path) -> Target:
    """What a source means on this board.

    Raises:
        UnknownModel, ModelUnavailable: it means nothing; says what is allowed.
    """
    file = catalog.resolve(source, models_dir)
    known = (entry.self_test for entry in catalog.catalog().values() if entry.sha256 == file.sha256)
    own = registry.kind(file.engine).self_tests(file.path) if file.engine and not file.files else ()
    return Target(source, file, own or next(known, ()))


class Updater:
    """Updates of a daemon's models, one at a time.

    Args:
        configured: `source` of every model.
        specs: of every model as it is in force; changed here, and nowhere else.
        dialect: how the model of a spec is spoken to; reads its file.
        tell: gets (event name, data).
        adapter: which one a model has with a file.
    """

    def __init__(
        self,
        configured: dict[str, str],
        specs: MutableMapping[str, ModelSpec],
        models_dir: Path,
        ledger: Ledger,
        residents: Residents,
        engine: Engine,
        *,
        dialect: Callable[[ModelSpec], Awaitable[Dialect]],
        is_resident: Callable[[str], bool],
        tell: Callable[[str, dict[str, JSON]], None],
        fetch: Fetch = fetch,
        adapter: Callable[[str, Version], str] = lambda name, version: "",
    ) -> None:
        self._configured = configured
        self._specs = specs
        self._models_dir = models_dir
        self._ledger = ledger
        self._residents = residents
        self._engine = engine
        self._dialect = dialect
        self._is_resident = is_resident
        self._tell = tell
        self._fetch = fetch
        self._adapter = adapter
        self._running: tuple[str, str, asyncio.Task[JSON]] | None = None
        self._live: dict[str, Attempt] = {}
        self._watching: list[Watch] = []

    def open(self) -> tuple[str, ...]:
        """Look at what an earlier daemon left. Returns sentences about records that are void."""
        return self._ledger.open(self._configured)

    def status(self, name: str) -> JSON:
        """{state, source, reason, at} of a model's last update; None: there was none."""
        attempt = self._live.get(name) or self._ledger.pages.attempts.get(name)
        return structs.asdict(attempt) if attempt else None

    def versions(self) -> dict[str, Version]:
        """The files in force, by model."""
        return {name: self._version(name) for name in self._specs}

    async def update(self, name: str, source: str | None, watch: Watch = lambda progress: None) -> JSON:
        """Update a model; the same update that runs already is joined. It goes on when whoever asked has left.

        Args:
            source: None: the one in force, which may mean other bytes since an upgrade of edged.
            watch: gets {state, ...} and, while it is pulled, {file, done, total, rate, note} as it goes.

        Returns:
            {model, state, source, path, previous, error}: state is done, current (there is nothing new) or failed.

        Raises:
            BadRequest: no such model, or a source that cannot be its.
            Busy: another update runs.
        """
        wanted = source or self._version(name).source
        target = self._locate(name, wanted)
        return await self._once(name, wanted, lambda: self._update(name, target), watch)

    async def rollback(self, name: str) -> JSON:
        """Back to the file before the last update, as long as it is there; once more, and it is forward again.

        Raises:
            BadRequest: no such model, or nothing to go back to.
            Busy: an update runs.
        """
        self._version(name)
        record = self._ledger.pages.models.get(name)
        if record is None or record.previous is None:
            raise BadRequest(f"model {name!r} was not updated: there is nothing to go back to")
        before = record.previous
        return await self._once(name, before.source, lambda: self._back(name, record, before), lambda progress: None)

    async def teach(self, name: str) -> None:
        """Give a model the adapter that belongs to its file, from the next request on, if that is another one than it
        has. A running update does so itself; models of several files have theirs from the next start on."""
        if name not in self._specs or self._running is not None:
            return
        adapter = self._adapter(name, self._version(name))
        if adapter == self._specs[name].adapter:
            return
        wanted = self._is_resident(name)
        try:
            await self._switch(name, structs.replace(self._specs[name], adapter=adapter))
        except EdgedError as error:
            log.warning("model %s stays with the adapter that it has: %s", name, error.message)
            return
        log.info("model %s has %s", name, f"the adapter {adapter}" if adapter else "no adapter any more")
        if wanted:
            await self._bring_in(name)

    def runs(self) -> bool:
        """Whether an update runs."""
        return self._running is not None

    async def stop(self) -> None:
        """End a running update; what has arrived is kept."""
        if self._running is not None:
            self._running[2].cancel()
            await asyncio.wait([self._running[2]])

    # -- one at a time ---------------------------------------------------------------------------------------------

    async def _once(self, name: str, source: str, work: Callable[[], Awaitable[JSON]], watch: Watch) -> JSON:
        if self._running is not None and self._running[:2] != (name, source):
            other = self._running[0]
            raise Busy(f"an update of model {other!r} runs; one at a time", retry_after_s=BUSY_RETRY_S)
        if self._running is None:
            task = asyncio.create_task(self._outcome(name, source, work), name="edged.update")
            self._running = (name, source, task)
            task.add_done_callback(self._over)
        self._watching.append(watch)
        try:
            return await asyncio.shield(self._running[2])
        finally:
            self._watching.remove(watch)

    def _over(self, task: asyncio.Task[JSON]) -> None:
        self._running = None
        if not task.cancelled() and (error := task.exception()) is not None:  # its caller may have left
            log.error("an update ended through a bug", exc_info=error)

    async def _outcome(self, name: str, source: str, work: Callable[[], Awaitable[JSON]]) -> JSON:
        """What came of it, also when it failed; then the old file is in force."""
        failed: EdgedError
        try:
            return await work()
        except EdgedError as error:
            failed = error
        except OSError as error:
            failed = ModelUnavailable(f"{error.filename or self._models_dir}: {error.strerror or error}")
        except Exception:
            log.exception("the update of model %s failed through a bug", name)
            failed = Internal("an error inside edged; its log has the details")
        finally:
            self._live.pop(name, None)
        log.warning("model %s is not updated to %s: %s", name, source, failed.message)
        await self._note(name, Attempt("failed", source, failed.message, time.time()))
        self._tell(
            "model_update_failed", {"model": name, "source": source, "code": failed.code, "reason": failed.message}
        )
        told: JSON = {"code": failed.code, "message": failed.message, "retryable": failed.retryable}
        return {"model": name, "state": "failed", "source": source, "path": self._specs[name].path, "error": told}

    # -- the steps -------------------------------------------------------------------------------------------------

    async def _update(self, name: str, target: Target) -> JSON:
        now = self._version(name)
        await self._note(name, Attempt("pulling", target.source, at=time.time()))
        version, new = await self._bring(name, target, now)
        if version is None:
            await self._note(name, Attempt("current", target.source, None, time.time()))
            return {"model": name, "state": "current", "source": target.source, "path": now.path, "error": None}
        fault_points.point("update.pulled")
        try:
            await self._try(name, target, version)
        except EdgedError as error:
            kept = await self._put_away(version, keep=error.retryable)
            error.message = f"{error.message}; {kept}"
            raise
        fault_points.point("update.tested")
        record = self._ledger.pages.models.get(name)
        oldest = record.previous if record else None
        await self._change(name, target.source, version, now, state="done")
        if oldest is not None and oldest.ours:
            await self._put_away(oldest, keep=False)
        self._tell("model_updated", {"model": name, "source": version.source, "path": version.path, "new": new})
        return self._done(name, "done", version, now)

    async def _bring(self, name: str, target: Target, now: Version) -> tuple[Version | None, bool]:
        """The new file on this board, right by its sha256 where that is known; None where it is the one in force."""
        self._say(name, "pulling", target.source)
        file = target.file
        if not file.files:  # the user's own, or a script: it stays where it is
            if str(file.path) == now.path:
                raise BadRequest(
                    f"{file.path} is the file in force; put the new one beside it, under another name, as --source"
                )
            if not file.path.is_file():
                raise ModelUnavailable(f"there is no file {file.path}")
            return Version(target.source, str(file.path)), False
        in_force = now.sha256
        if in_force is None and Path(now.path).is_file():
            in_force = await pull.sha256(Path(now.path), progress=self._progress)
        if file.sha256 is not None and file.sha256 == in_force:
            return None, False
        candidate = catalog.beside(file)
        got = await self._fetch(candidate, self._progress)
        if got.sha256 == in_force:
            await asyncio.to_thread(forget_file, candidate.path)
            return None, False
        path = candidate.path
        if file.sha256 is None:
            path = catalog.beside(structs.replace(file, sha256=got.sha256)).path
            await asyncio.to_thread(candidate.path.replace, path)
        return Version(target.source, str(path), got.sha256, ours=True), got.new

    async def _try(self, name: str, target: Target, version: Version) -> None:
        """Load the new file beside everything else, and ask it. Raises ModelUnavailable, NoMemory with the reason."""
        self._say(name, "loading", target.source)
        spec = structs.replace(self._at(name, version), name=CANDIDATE.format(name=name), pin=False, variant="")
        kind = registry.kind(spec.engine)
        await asyncio.to_thread(kind.check_file, Path(version.path))
        self._residents.admit(spec)
        try:
            await self._residents.load(spec.name)
            if kind.generates:
                dialect = await self._dialect(spec)

                def on_test(number: int, of: int) -> None:
                    self._say(name, "testing", target.source, test=number, tests=of)

                selftest.must_pass(await selftest.problem(spec.name, target.tests, self._engine, dialect, on_test))
        finally:
            await self._residents.dismiss(spec.name)

    async def _change(self, name: str, source: str, version: Version, before: Version, *, state: str) -> None:
        """Write it down, then switch; the new file comes in at once where the old one was in."""
        self._say(name, "switching", source)
        old = self._ledger.pages.models.get(name)
        wanted = self._is_resident(name)
        record = Record(self._configured[name], version, before)
        await asyncio.to_thread(self._ledger.record, name, record, Attempt(state, source, None, time.time()))
        fault_points.point("update.recorded")
        try:
            await self._switch(name, self._at(name, version))
        except EdgedError as error:
            failed = Attempt("failed", source, error.message, time.time())
            await asyncio.to_thread(self._ledger.record, name, old, failed)
            raise
        fault_points.point("update.switched")
        log.info("model %s is now %s (%s), before it was %s", name, version.path, source, before.path)
        if wanted:
            await self._bring_in(name)

    def _at(self, name: str, version: Version) -> ModelSpec:
        """The model as it is with another file."""
        return structs.replace(self._specs[name], path=version.path, adapter=self._adapter(name, version))

    async def _switch(self, name: str, spec: ModelSpec) -> None:
        await self._residents.switch(name, spec)
        self._specs[name] = spec

    async def _bring_in(self, name: str) -> None:
        try:
            await self._residents.load(name)
        except EdgedError as error:  # the next request says so again, or finds room
            log.warning("model %s was switched and is not in memory yet: %s", name, error.message)

    async def _back(self, name: str, record: Record, before: Version) -> JSON:
        if not await asyncio.to_thread(Path(before.path).is_file):
            raise ModelUnavailable(f"{before.path}, the file before the last update, is gone")
        await self._change(name, before.source, before, record.current, state="rolled_back")
        self._tell("model_rolled_back", {"model": name, "source": before.source, "path": before.path})
        return self._done(name, "rolled_back", before, record.current)

    async def _put_away(self, version: Version, *, keep: bool) -> str:
        """Remove a file that an update pulled, unless it may be of use; says what became of it."""
        used = self._ledger.paths() | {spec.path for spec in self._specs.values()}
        if not version.ours or version.path in used:
            return f"{version.path} is left where it is"
        if keep:
            return f"{version.path} is kept, and the next update goes on with it"
        gone = await asyncio.to_thread(forget_file, Path(version.path))
        return f"{version.path} is removed" if gone else f"{version.path} could not be removed"

    # -- what is said ----------------------------------------------------------------------------------------------

    def _version(self, name: str) -> Version:
        """The file in force."""
        if name not in self._specs:
            known = ", ".join(self._specs) or "none"
            raise BadRequest(f"no model {name!r} that has one file here; those that can be updated are {known}")
        record = self._ledger.pages.models.get(name)
        return record.current if record else Version(self._configured[name], self._specs[name].path)

    def _locate(self, name: str, source: str) -> Target:
        """BadRequest where the source means nothing, or a file of another kind."""
        try:
            target = locate(source, self._models_dir)
        except ModelUnavailable as error:
            raise BadRequest(f"source: {error.message}") from None
        now = self._specs[name]
        other_kind = target.file.engine not in (None, now.engine)
        other_suffix = registry.kind(now.engine).suffix and Path(now.path).suffix != target.file.path.suffix
        if other_kind or other_suffix:
            wanted = Path(now.path).suffix or now.engine
            raise BadRequest(f"source: model {name!r} is a {wanted} file, and {source!r} is none")
        return target

    def _say(self, name: str, state: str, source: str, **more: JSON) -> None:
        """A step begins."""
        if (before := self._live.get(name)) is None or before.state != state:
            self._live[name] = Attempt(state, source, None, time.time())
            self._tell("model_update", {"model": name, "state": state, "source": source})
        self._watched({"state": state, **more})

    def _progress(self, progress: Progress) -> None:
        self._watched({"state": "pulling", **structs.asdict(progress)})

    def _watched(self, told: dict[str, JSON]) -> None:
        for watch in list(self._watching):
            watch(told)

    def _done(self, name: str, state: str, version: Version, before: Version) -> JSON:
        return {
            "model": name,
            "state": state,
            "source": version.source,
            "path": version.path,
            "previous": before.path,
            "error": None,
        }

    async def _note(self, name: str, attempt: Attempt) -> None:
        await asyncio.to_thread(self._ledger.note, name, attempt)
