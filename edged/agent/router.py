"""Where a request is answered. Pure: (what is asked, what the agent allows, what earlier attempts showed, which
upstreams can be used) -> a decision with its reason, or a refusal.

`decide` is asked again after every attempt that ended without an answer, with what that attempt showed.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from edged.errors import BadRequest
from edged.types import Finding, Offline, Preference, Privacy, UpstreamFacts

# A prompt with more characters than this times the context's tokens cannot fit: no text of any language has that
# many characters a token (English has 4 to 5). What is shorter is counted by the engine.
CHARS_PER_TOKEN = 10


class Reason(StrEnum):
    """Why a route was taken; the same word in the reply, the log and the metrics."""

    LOCAL_OK = "local_ok"  #: nothing speaks against answering on the board
    LOCAL_ASKED = "local_asked"  #: the request or its agent says so
    PRIVATE = "private"  #: it would better go to the cloud, and nothing of it may leave the board
    CLOUD_ASKED = "cloud_asked"  #: the request or its agent says so
    CONTEXT = "context"  #: it does not fit the local model's context
    ESCALATED = "escalated"  #: the local model chose to hand it over
    UNSURE = "unsure"  #: the local model's call was below min_confidence and was not made
    LOCAL_FAILED = "local_failed"  #: the local attempt failed its checks
    NO_LOCAL_MODEL = "no_local_model"  #: the local model cannot be loaded now
    OFFLINE = "offline"  #: it needs the cloud, and the agent answers here while there is no link
    OVER_BUDGET = "over_budget"  #: it needs the cloud, and today's tokens are spent
    PRESSURE = "pressure"  #: the board is short of memory, and leaves to others what they can do


REASONS = {
    Finding.CONTEXT: Reason.CONTEXT,
    Finding.ESCALATED: Reason.ESCALATED,
    Finding.UNSURE: Reason.UNSURE,
    Finding.FAILED: Reason.LOCAL_FAILED,
    Finding.UNAVAILABLE: Reason.NO_LOCAL_MODEL,
}
FINAL = {Finding.CONTEXT, Finding.FAILED, Finding.UNAVAILABLE}  # another local attempt would end the same way


class Go(StrEnum):
    """What to do with a request now."""

    LOCAL = "local"  #: answer here
    CLOUD = "cloud"  #: ask the upstream
    WAIT = "wait"  #: park it until an upstream takes it
    FAIL = "fail"  #: it has no answer; what the last attempt failed with counts, if there was one


class Facts(Struct, frozen=True, kw_only=True):
    """What a decision is made from.

    asked, configured: the wish of the request and of its agent; privacy: the stricter one of both.
    upstreams: that may answer for the agent, in their order, without those that refused this request.
    findings: of earlier attempts, oldest first.
    chars: characters of the question; context: tokens of the local model, 0 where it does not count.
    pressed: the board is so short of memory that it wants no new work.
    """

    asked: Preference | None
    configured: Preference
    privacy: Privacy
    when_offline: Offline = Offline.WAIT
    upstreams: tuple[UpstreamFacts, ...] = ()
    findings: tuple[Finding, ...] = ()
    chars: int = 0
    context: int = 0
    pressed: bool = False


class Decision(Struct, frozen=True):
    """What to do and why. upstream: which one, for Go.CLOUD; degraded: a weaker way than the one wanted.

    `decide` leaves the rest to the dispatcher. served: a server on this board runs the agent's model. may_leave: the
    request may be handed to an upstream.
    """

    go: Go
    reason: Reason
    upstream: str | None = None
    degraded: bool = False
    served: bool = False
    may_leave: bool = False

    @property
    def remote(self) -> bool:
        """Whether the work is done in another process, an upstream or a server on this board: it takes no place among
        the engine's sequences."""
        return self.go in (Go.CLOUD, Go.WAIT) or (self.go is Go.LOCAL and self.served)


def in_words(decision: Decision) -> str:
    """What is kept of a decision with a request: where it goes and why, not what is permitted."""
    return f"{decision.go} {decision.reason} {int(decision.degraded)} {decision.upstream or ''}".rstrip()


def from_words(words: str) -> Decision | None:
    """The decision that was kept so; None: it cannot be read, or nothing was kept."""
    go, reason, degraded, upstream, *_ = *words.split(" ", 3), "", "", "", ""
    try:
        return Decision(Go(go), Reason(reason), upstream or None, degraded == "1")
    except ValueError:
        return None


def stricter(one: Privacy, other: Privacy | None) -> Privacy:
    """The stricter of two."""
    return Privacy.DEVICE if Privacy.DEVICE in (one, other) else Privacy.ANY


def may_leave(facts: Facts) -> bool:
    """Whether anything about the request may ever be sent to an upstream."""
    return (
        facts.privacy is Privacy.ANY
        and (facts.asked or facts.configured) is not Preference.LOCAL
        and bool(facts.upstreams)
    )


def decide(facts: Facts) -> Decision:
    """What to do with a request now.

    (1) nothing of it may leave: here, or not at all;
    (2) here is where it is wanted: likewise;
    (3) nothing asks for the cloud: here;
    (4) no upstream is configured, or all have refused it: not at all, unless only a guess, or the board's want of
        memory, asked for the cloud: what was accepted is done here then;
    (5) an upstream is up, in its budget and has room: there;
    (6) an upstream is up and in its budget, without room: it waits for its turn;
    (7) only the want of memory asked for the cloud: here;
    (8) every upstream that is up is over its budget: here, where the agent falls back to the board, else not at all;
    (9) no upstream is up: as the agent says.

    Where only an unsure call asked for the cloud, "not at all" in (1), (2) and (4), and in (8) unless the agent says
    "fail", means: here, and edged asks whether to make it (LOCAL, UNSURE).

    Raises:
        BadRequest: the request insists on the cloud and may not, or cannot ever, go there.
    """
    wanted = facts.asked or facts.configured
    last = facts.findings[-1] if facts.findings else None
    why = _why_cloud(facts, wanted, last)
    if facts.privacy is Privacy.DEVICE:  # (1)
        if facts.asked is Preference.CLOUD:
            raise BadRequest("route: 'cloud' contradicts privacy 'device', with which nothing leaves the board")
        if last is not None:
            return _nowhere(facts, REASONS[last])
        plain = Reason.LOCAL_ASKED if wanted is Preference.LOCAL else Reason.LOCAL_OK
        return Decision(Go.LOCAL, Reason.PRIVATE if why else plain)
    if wanted is Preference.LOCAL:  # (2)
        return _nowhere(facts, REASONS[last]) if last else Decision(Go.LOCAL, Reason.LOCAL_ASKED)
    if why is None:  # (3)
        return Decision(Go.LOCAL, Reason.LOCAL_OK)
    if not facts.upstreams:  # (4)
        if facts.asked is Preference.CLOUD and last is None:
            raise BadRequest("route: 'cloud' is not possible: no upstream is configured; use auto or local")
        guess = why in (Reason.CONTEXT, Reason.PRESSURE) and last is None
        return Decision(Go.LOCAL, Reason.LOCAL_OK) if guess else _nowhere(facts, why)
    affordable = [u for u in facts.upstreams if u.up and u.budget_left]
    for upstream in affordable:  # (5)
        if upstream.room:
            return Decision(Go.CLOUD, why, upstream.name)
    if affordable:  # (6)
        return Decision(Go.WAIT, why)
    if why is Reason.PRESSURE:  # (7)
        return Decision(Go.LOCAL, Reason.LOCAL_OK)
    here = facts.when_offline is Offline.LOCAL and not FINAL & set(facts.findings)
    if any(u.up for u in facts.upstreams):  # (8)
        if facts.when_offline is Offline.WAIT:
            return _nowhere(facts, Reason.OVER_BUDGET)
        return Decision(Go.LOCAL if here else Go.FAIL, Reason.OVER_BUDGET, degraded=here)
    if facts.when_offline is Offline.WAIT:  # (9)
        return Decision(Go.WAIT, why)
    return Decision(Go.LOCAL if here else Go.FAIL, Reason.OFFLINE, degraded=here)


def _nowhere(facts: Facts, why: Reason) -> Decision:
    """Of a request that may go nowhere else."""
    asks = facts.findings[-1:] == (Finding.UNSURE,)
    return Decision(Go.LOCAL, Reason.UNSURE) if asks else Decision(Go.FAIL, why)


def _why_cloud(facts: Facts, wanted: Preference, last: Finding | None) -> Reason | None:
    """What asks for the cloud; None: nothing."""
    if last is not None:
        return REASONS[last]
    if wanted is Preference.CLOUD:
        return Reason.CLOUD_ASKED
    if facts.context and facts.chars > facts.context * CHARS_PER_TOKEN:
        return Reason.CONTEXT
    return Reason.PRESSURE if facts.pressed else None
