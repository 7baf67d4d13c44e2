"""The gate: every way in asks here. `access` decides; what is refused is told to the audit log; rates are counted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from msgspec import Struct, structs

from edged.access import policy as access
from edged.access.policy import Policy
from edged.errors import BadRequest, Busy, Cancelled, EdgedError, Forbidden, Internal, TooLarge, UnknownAgent
from edged.types import JSON, AuditEntry, Caller, Priority, Rate

KEPT = 1024  # buckets; before there are more, those that are full again go: a full one is as none
# Of who may not come in and of what nobody can read the audit log gets so much of each: enough to see it, too little to
# push out what is worth keeping. What comes above that is counted in the next entry. All that comes over MQTT is one:
# anybody may choose a Response Topic, and an agent's name in a topic.
NOISE = Rate(per_minute=20, burst=20)
REASON = 300  # characters; as many as our own longest
CALLERS = {kind.code for kind in (BadRequest, TooLarge, Forbidden, UnknownAgent)}  # errors that are the caller's
OK = "ok"  # the outcome of an act that did what it was to do
Audit = Callable[[AuditEntry], None]


class _Bucket(Struct):
    """Tokens of one client as they were at a moment, on the monotonic clock."""

    tokens: float
    at: float


class Buckets:
    """Token buckets by who they count. A bucket begins full and gets `rate.per_minute` tokens a minute up to
    `rate.burst`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str, tuple[_Bucket, Rate]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, whose: str, rate: Rate) -> float | None:
        """Take a token; None, or in how many seconds there is one."""
        bucket = self._filled(whose, rate)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return None
        return (1 - bucket.tokens) * 60 / rate.per_minute

    def give_back(self, whose: str, rate: Rate) -> None:
        """What a token was taken for cost nothing."""
        bucket = self._filled(whose, rate)
        bucket.tokens = min(float(rate.burst), bucket.tokens + 1)

    def _filled(self, whose: str, rate: Rate) -> _Bucket:
        now = self._now()
        if whose not in self._buckets and len(self._buckets) >= KEPT:
            self._forget(now)
        bucket, _ = self._buckets.get(whose) or (_Bucket(float(rate.burst), now), rate)
        bucket.tokens = _tokens(bucket, rate, now)
        bucket.at = now
        self._buckets[whose] = bucket, rate
        return bucket

    def _forget(self, now: float) -> None:
        for whose, (bucket, rate) in list(self._buckets.items()):
            if _tokens(bucket, rate, now) >= rate.burst:
                del self._buckets[whose]


def _tokens(bucket: _Bucket, rate: Rate, now: float) -> float:
    return min(float(rate.burst), bucket.tokens + (now - bucket.at) * rate.per_minute / 60)


class Act(Struct):
    """Something that a caller does, until it is over. outcome: "ok", or an error's code."""

    outcome: str = OK


class Gate:
    """Names callers and lets them in, or not.

    Args:
        audit: gets an entry of every refusal, with outcome `forbidden` or `busy`, before the error is raised.
        is_tool: whether a process of the daemon's own user comes of a Python tool. Its calls are the model's, and what
            the model asks for comes by no other way.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        audit: Audit = lambda entry: None,
        is_tool: Callable[[int], bool] = lambda pid: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.audit = audit
        self._is_tool = is_tool
        self._buckets = Buckets(now)
        self._noise = Buckets(now)
        self._left_out = 0

    def unix(
        self, pid: int, uid: int, groups: Collection[int], *, socket_group: int, transport: str = "unix"
    ) -> Caller:
        """The peer of a Unix socket."""
        if uid == os.getuid() and self._is_tool(pid):
            return _tool(pid, transport)
        return self.policy.unix(uid, groups, own_uid=os.getuid(), socket_group=socket_group, transport=transport)

    def open_way(self, way: str, pid: int | None, transport: str = "http") -> Caller:
        """Whoever came by a way in that has no authentication. pid: of the daemon's descendant that came; None: it was
        none."""
        if pid is not None and self._is_tool(pid):
            return _tool(pid, transport)
        return self.policy.open_way(way, transport)

    def enter(self, caller: Caller, way_in: str) -> None:
        """Raises Forbidden where the caller may use nothing here. way_in: what would let it in."""
        with self._audited(caller, "access.refused"):
            if not caller.admitted:
                missing = "no role of [access] is for it" if self.policy.has_roles else way_in
                raise Forbidden(f"{caller.client} may not use edged: {caller.kept_out or missing}")

    def stranger(self, origin: str, error: EdgedError) -> EdgedError:
        """The error for somebody who is not known; it is to be raised."""
        entry = AuditEntry(what="access.refused", who=origin, outcome=error.code, about={"reason": _short(error)})
        self._noted(entry, origin)
        error.audited = True
        return error

    def unread(self, caller: Caller, error: EdgedError) -> None:
        """Tell the audit log of a refusal, if nobody has: of what is no request, or asks for what there is not. Errors
        that are not the caller's are no refusals."""
        if error.code in CALLERS and not error.audited:
            told: dict[str, JSON] = {"transport": caller.transport, "reason": _short(error)}
            what = "request.refused"
            entry = AuditEntry(what=what, who=caller.client, role=caller.role, outcome=error.code, about=told)
            self._noted(entry, _noisy(caller))
            error.audited = True

    def ask(self, caller: Caller, agent: str, priority: Priority | None) -> None:
        """A request to an agent. Raises Forbidden."""
        with self._audited(caller, "request.refused", agent=agent):
            access.check(caller, agent, priority)

    def tool(self, caller: Caller, name: str, rid: str = "") -> None:
        """A call, by hand or of an agent for the caller. Raises Forbidden."""
        with self._audited(caller, "tool.refused", rid, tool=name):
            access.check_tool(caller, name)

    def model(self, caller: Caller, name: str) -> None:
        """A completion or embedding without an agent. Raises Forbidden."""
        with self._audited(caller, "completion.refused", model=name):
            access.check_model(caller, name)

    def manage(self, caller: Caller, what: str, **about: JSON) -> None:
        """What is for those who look after the daemon. what: an infinitive. Raises Forbidden."""
        with self._audited(caller, "manage.refused", **about):
            access.check_manage(caller, what)

    @contextmanager
    def managing(self, caller: Caller, what: str, **about: JSON) -> Iterator[Act]:
        """Around an act that is for those who look after the daemon. what: an infinitive. Raises Forbidden. When the
        act is over the audit log gets `manage.done`, or `manage.failed` with the error's code as the outcome."""
        self.manage(caller, what, **about)
        with self.acting(caller, "manage.done", failed="manage.failed", about={"act": what, **about}) as act:
            yield act

    @contextmanager
    def acting(
        self, caller: Caller, what: str, *, failed: str | None = None, rid: str = "", about: JSON = None
    ) -> Iterator[Act]:
        """Around an act of the caller's: one entry in the audit log, written when the act is over.

        Args:
            what, failed: the entry's `what`; `failed` where the outcome is not "ok", if that has a name of its own.

        The outcome is what the block sets, "ok" if nothing; the code of the error that the block raises; "cancelled"
        where the caller left before the act was over, and then the entries of the part that acts say how it ended.
        """
        act = Act()
        try:
            yield act
        except EdgedError as error:
            act.outcome = error.code
            error.audited = True
            raise
        except Exception:
            act.outcome = Internal.code
            raise
        except BaseException:
            act.outcome = Cancelled.code
            raise
        finally:
            name = what if act.outcome == OK else failed or what
            who = {"who": caller.client, "role": caller.role}
            self.audit(AuditEntry(what=name, rid=rid, outcome=act.outcome, about=about or {}, **who))

    def spend(self, caller: Caller, what: str) -> None:
        """Count something against the caller's rate. Raises Busy."""
        if (busy := self.short(caller)) is not None:
            self.refused(caller, what, busy)
            raise busy

    def short(self, caller: Caller) -> Busy | None:
        """As `spend`, for who has to find out first whether it is anything new: why it would be refused. Where it is
        None a token was taken: `give_back` it if it was nothing new."""
        if caller.rate is None:
            return None
        wait_s = self._buckets.take(_counted(caller), caller.rate)
        if wait_s is None:
            return None
        told = f"{caller.client} has asked {caller.rate.burst} times at once or {caller.rate.per_minute:g} a minute"
        return Busy(f"{told}, which is all that role {caller.role} allows", retry_after_s=round(wait_s + 0.05, 1))

    def give_back(self, caller: Caller) -> None:
        """What was counted was nothing new, or was refused."""
        if caller.rate is not None:
            self._buckets.give_back(_counted(caller), caller.rate)

    def refused(self, caller: Caller, what: str, error: EdgedError, rid: str = "", **about: JSON) -> None:
        """Tell the audit log of a refusal."""
        told = {**about, "transport": caller.transport, "reason": error.message}
        entry = AuditEntry(what=what, who=caller.client, role=caller.role, outcome=error.code, rid=rid, about=told)
        if caller.admitted:
            self.audit(entry)
        else:
            self._noted(entry, _noisy(caller))
        error.audited = True

    def _noted(self, entry: AuditEntry, whose: str) -> None:
        if self._noise.take(whose, NOISE) is not None:
            self._left_out += 1
            return
        if self._left_out:
            entry = structs.replace(entry, about={**entry.about, "left_out": self._left_out})
            self._left_out = 0
        self.audit(entry)

    @contextmanager
    def _audited(self, caller: Caller, what: str, rid: str = "", **about: JSON) -> Iterator[None]:
        try:
            yield
        except Forbidden as error:
            self.refused(caller, what, error, rid, **about)
            raise


def _tool(pid: int, transport: str) -> Caller:
    why = "a Python tool is called by edged, and does not call it"
    return Caller(f"tool:{pid}", transport, frozenset(), admitted=False, manage=False, kept_out=why)


def _short(error: EdgedError) -> str:
    """What was wrong may be quoted in it, and that may be long."""
    return error.message if len(error.message) <= REASON else f"{error.message[:REASON]}..."


def _noisy(caller: Caller) -> str:
    return "mqtt" if caller.transport == "mqtt" else caller.client


def _counted(caller: Caller) -> str:
    return caller.counted_as or caller.client
