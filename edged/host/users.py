"""Names of users. A uid need not have one, as in a container that is started with a number."""

from __future__ import annotations

import os
import pwd


def user_name(uid: int) -> str:
    """The name of a user, or "uid 1234" where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def own_name() -> str:
    """The name of the user that this process runs as."""
    return user_name(os.geteuid())
