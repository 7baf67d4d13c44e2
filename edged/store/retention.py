"""What the store forgets, and when: finished requests, and responses' threads, after the retention, and the oldest as
soon as it is nearly full. Functions of a connection, run by the store's writer thread."""

from __future__ import annotations

from typing import Any, cast

import apsw

from edged.host import clock
from edged.store import lookup

TRIM = 64  # rows a trim deletes at once: keeps the writer's transactions short
TRIM_FOR_ROOM = 8  # and where it is for room: rows may be large, and no more of them are to go than have to


def is_crowded(c: apsw.Connection, max_bytes: int) -> bool:
    """Whether what is finished has to go, so that there is room before anybody has to be refused."""
    return used_bytes(c) > max_bytes * 9 // 10


def used_bytes(c: apsw.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (cast(int, c.pragma(p)) for p in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size


def trim(c: apsw.Connection, keep_s: float, boot: str, max_bytes: int, transports: tuple[str, ...]) -> int:
    """Forget finished requests and threads of responses: those older than the retention; the oldest, whatever their
    age, while it is crowded. Unfinished ones stay, and those with a reply that one of the `transports` has yet to
    deliver. Returns how many.

    Requests of this boot are as old as the boot clock says: a board that learns the date a minute after its start must
    not take them for years old, and forget that they were done.
    """
    if is_crowded(c, max_bytes):  # without the look for old ones, which goes through all of them
        old = _delete_oldest(c, transports) or _delete_turns(c)
    else:
        limits = (boot, clock.boot() - keep_s, boot, clock.wall() - keep_s)
        old = _delete_finished(
            c, transports, "AND (boot = ? AND accepted_boot < ? OR boot <> ? AND finished_wall < ?)", limits
        )
        old += _delete_threads(c, limits)
    c.execute("PRAGMA incremental_vacuum(64)").fetchall()
    c.execute("DELETE FROM turns WHERE expires_wall < ?", (clock.wall(),))
    return old


def _delete_finished(
    c: apsw.Connection, transports: tuple[str, ...], condition: str, values: tuple[Any, ...], limit: int = TRIM
) -> int:
    undelivered = f"d.state <> 'delivered' AND d.transport IN ({lookup.marks(transports)})"
    c.execute(
        "DELETE FROM requests WHERE seq IN (SELECT seq FROM requests r WHERE finished_wall IS NOT NULL"
        f" {condition} AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.rid = r.rid AND {undelivered})"
        f" ORDER BY finished_wall LIMIT {limit})",
        (*values, *transports),
    )
    return c.changes()


def _delete_oldest(c: apsw.Connection, transports: tuple[str, ...]) -> int:
    """The oldest finished requests, or the thread whose newest response is older than all of them. Threads are worth as
    much as requests: neither kind pushes the other out."""
    newest = "SELECT max(created_wall) AS at, thread FROM responses GROUP BY thread ORDER BY at LIMIT 1"
    thread = c.execute(newest).fetchone()
    finished = cast("float | None", c.execute("SELECT min(finished_wall) FROM requests").get)
    if thread is not None and (finished is None or cast(float, thread[0]) < finished):
        return _delete_thread(c, thread)
    return _delete_finished(c, transports, "", (), TRIM_FOR_ROOM) or _delete_thread(c, thread)


def _delete_thread(c: apsw.Connection, thread: tuple[Any, ...] | None) -> int:
    if thread is None:
        return 0
    c.execute("DELETE FROM responses WHERE thread = ?", (thread[1],))
    return c.changes()


def _delete_threads(c: apsw.Connection, limits: tuple[Any, ...]) -> int:
    """Those of which every response is too old."""
    is_old = "(boot = ? AND created_boot < ? OR boot <> ? AND created_wall < ?)"
    c.execute(
        "DELETE FROM responses WHERE thread IN"
        f" (SELECT thread FROM responses GROUP BY thread HAVING min({is_old}) LIMIT {TRIM})",
        limits,
    )
    return c.changes()


def _delete_turns(c: apsw.Connection) -> int:
    """The conversations that end first: memory of a dialogue is worth less than taking a request in."""
    c.execute(
        "DELETE FROM turns WHERE (client, agent, conversation, seq) IN"
        f" (SELECT client, agent, conversation, seq FROM turns ORDER BY expires_wall LIMIT {TRIM})"
    )
    return c.changes()
