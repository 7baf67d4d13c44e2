"""Who may use what."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from edged.access import policy as access
from edged.access.policy import Policy
from edged.config import Agent
from edged.config.roles import Access, Role
from edged.errors import Forbidden
from edged.types import Caller, Priority, Rate

ROLES = {
    "operator": Role(agents=("*",), tools=("*",), models=("*",), manage=True),
    "viewer": Role(agents=("house",), tools=("level",), requests_per_minute=30.0, burst=2),
    "batch": Role(agents=("house",), tools=("*",), models=("small",), priority=Priority.BATCH),
}
ACCESS = Access(
    unix_uid={"1000": "operator", "1001": "", "900": "viewer"},
    unix_group={"50": "viewer", "60": "batch"},
    mqtt={"edged/+/agents/#": "viewer", "edged/n1/agents/house/request": "operator", "edged/n2/#": ""},
    api_key={"panel": "viewer"},
)


@pytest.mark.parametrize(
    ("uid", "groups", "allowed"),
    [
        (0, [], True),
        (900, [], True),
        (1000, [50], True),
        (1000, [7, 50, 8], True),
        (1000, [7], False),
        (1000, [], False),
        (50, [900], False),
    ],
    ids=["root", "own-user", "primary-group", "other-group", "no-member", "no-groups", "numbers-swapped"],
)
def test_without_roles_a_unix_peer_may_do_everything_or_nothing(uid: int, groups: list[int], allowed: bool) -> None:
    """Root, the daemon's own user and the socket's group; nobody else."""
    caller = Policy(["house", "car"]).unix(uid, groups, own_uid=900, socket_group=50)
    assert caller.agents == (frozenset({"house", "car"}) if allowed else frozenset())
    assert (caller.client, caller.transport, caller.admitted) == (f"unix:{uid}", "unix", allowed)
    assert access.may_tool(caller, "level") == access.may_model(caller, "small") == allowed
    assert not caller.role


def test_without_roles_keys_and_topics_may_do_everything() -> None:
    """As the broker and the file of keys let them in."""
    policy = Policy(["house"])
    for caller in (policy.key("panel"), policy.mqtt("mqtt:r", "edged/n1/agents/house/request")):
        assert caller.agents == {"house"}
        assert caller.manage
        assert caller.rate is None


def policy(default: str = "", given: Access = ACCESS) -> Policy:
    """With the roles of this file."""
    return Policy(["house", "car"], ROLES, msgspec.structs.replace(given, default=default))


def unix(uid: int, *groups: int) -> Callable[[Policy], Caller]:
    """A peer of the socket."""
    return lambda policy: policy.unix(uid, groups, own_uid=901, socket_group=70)


def topic(name: str) -> Callable[[Policy], Caller]:
    """Somebody who published."""
    return lambda policy: policy.mqtt("mqtt:app/r", name)


@pytest.mark.parametrize(
    ("who", "role", "by_default"),
    [
        (unix(1000), "operator", "operator"),
        (unix(1000, 50), "operator", "operator"),
        (unix(1001, 50), "", ""),
        (unix(7, 50), "viewer", "viewer"),
        (unix(7, 60, 50), "viewer", "viewer"),
        (unix(7, 60), "batch", "batch"),
        (unix(7, 70), "", "batch"),
        (unix(0), "", "batch"),
        (unix(900), "viewer", "viewer"),
        (lambda policy: policy.key("panel"), "viewer", "viewer"),
        (lambda policy: policy.key("other"), "", "batch"),
        (topic("edged/n1/agents/house/request"), "operator", "operator"),
        (topic("edged/n1/agents/car/request"), "viewer", "viewer"),
        (topic("edged/n2/agents/car/request"), "", ""),
        (topic("edged/n1/requests/1/cancel"), "", "batch"),
    ],
)
def test_with_roles_everybody_has_the_one_that_is_written_or_the_default(
    who: Callable[[Policy], Caller], role: str, by_default: str
) -> None:
    """The user before its groups, the first group of the table, the most specific topic filter."""
    for default, expected in (("", role), ("batch", by_default)):
        caller = who(policy(default))
        assert caller.role == expected
        if not expected:
            assert not caller.agents
            assert caller.tools == caller.models == frozenset()
            with pytest.raises(Forbidden):
                access.check(caller, "house")


@pytest.mark.parametrize(("uid", "manages"), [(0, True), (901, True), (7, False), (900, False), (1000, True)])
def test_root_and_the_daemons_user_keep_management_where_no_entry_names_them(uid: int, manages: bool) -> None:
    """So that nobody locks themselves out; they may use no agent, though."""
    caller = unix(uid)(policy())
    assert caller.manage == manages
    assert not caller.agents or uid in (900, 1000)
    if manages:
        assert caller.admitted
        access.check_manage(caller, "load models")
    else:
        with pytest.raises(Forbidden, match="manage"):
            access.check_manage(caller, "load models")
    named = unix(uid)(policy(given=Access(unix_uid={str(uid): "viewer"})))
    assert (named.role, named.manage) == ("viewer", False)


def test_refusals_name_who_what_and_what_is_allowed() -> None:
    """For each kind of thing."""
    viewer, batch = policy().key("panel"), unix(7, 60)(policy())
    with pytest.raises(Forbidden, match=r"key:panel \(role viewer\) may not use agent 'car'; allowed are house"):
        access.check(viewer, "car")
    with pytest.raises(Forbidden, match=r"'valve'; allowed are level"):
        access.check_tool(viewer, "valve")
    with pytest.raises(Forbidden, match=r"'small'; it may use none"):
        access.check_model(viewer, "small")
    with pytest.raises(Forbidden, match=r"priority interactive; allowed is batch"):
        access.check(batch, "house", Priority.INTERACTIVE)
    access.check(batch, "house", Priority.BATCH)
    access.check(batch, "house")
    access.check(viewer, "house", Priority.INTERACTIVE)
    access.check_model(batch, "small")


def test_rate_counts_a_topic_and_not_what_its_publisher_calls_itself() -> None:
    """Anybody may name any Response Topic; users and keys count as themselves."""
    asked = [policy().mqtt(f"mqtt:{name}", "edged/n1/agents/car/request") for name in ("a", "b")]
    assert asked[0].rate == Rate(30.0, 2)
    assert asked[0].counted_as == asked[1].counted_as
    assert policy().key("panel").counted_as == "key:panel"


def test_publisher_is_its_response_topic_and_where_roles_decide_also_the_topic_it_may_publish_on() -> None:
    """So nobody asks in the name of whoever may publish elsewhere."""
    house, car = "edged/n1/agents/house/request", "edged/n1/agents/car/request"
    one, other = (policy().mqtt("mqtt:app/r", topic) for topic in (house, car))
    assert one.client == f"mqtt:app/r via {house}"
    assert one.client != other.client
    assert one.former == other.former == "mqtt:app/r"
    assert policy().later(one.client, "mqtt", "operator").role == "operator"
    plain = policy().mqtt(f"mqtt:{house}", house)
    assert (plain.client, plain.former) == (f"mqtt:{house}", "")
    assert Policy(["house"]).mqtt("mqtt:app/r", house).client == "mqtt:app/r"


@pytest.mark.parametrize(
    ("role", "rate"),
    [
        (Role(), None),
        (Role(requests_per_minute=90.0), Rate(90.0, 90)),
        (Role(requests_per_minute=0.1), Rate(0.1, 1)),
        (Role(requests_per_minute=6.0, burst=3), Rate(6.0, 3)),
    ],
)
def test_burst_is_a_minutes_worth_where_it_is_not_written(role: Role, rate: Rate | None) -> None:
    """At least one, or nothing could ever be asked."""
    assert role.rate == rate


@pytest.mark.parametrize(
    ("client", "stored", "now"),
    [
        ("unix:1000", "viewer", "operator"),
        ("unix:1001", "operator", ""),
        ("unix:7", "viewer", "viewer"),
        ("unix:7", "", ""),
        ("unix:7", "gone", ""),
        ("key:panel", "operator", "viewer"),
        ("key:revoked", "operator", ""),
        ("mqtt:app/r", "operator", "operator"),
    ],
)
def test_stored_request_has_the_role_that_its_client_would_have_now(client: str, stored: str, now: str) -> None:
    """As far as that can be told from who it was; groups and topics cannot be asked again."""
    assert policy().later(client, "mqtt", stored).role == now
    open_to_all = Policy(["house"]).later(client, "mqtt", stored)
    assert open_to_all.agents == {"house"}
    assert open_to_all.tools is None


def test_agent_has_no_tools_for_a_caller_who_may_call_none_of_them() -> None:
    """Then there is nothing to choose; else the model chooses among all, and the act is refused."""
    agent = Agent(model="small", tools=("valve", "level"))
    viewer, operator = policy().key("panel"), unix(1000)(policy())
    assert access.for_caller(viewer, agent) is access.for_caller(operator, agent) is agent
    assert access.for_caller(viewer, Agent(model="small", tools=("valve",))).tools == ()
    assert access.for_caller(operator, Agent(model="small")).tools == ()


def test_open_way_without_roles_uses_agents_and_models_and_manages_nothing() -> None:
    """Also when a request of it is worked on later."""
    policy = Policy(["house"])
    for caller in (policy.open_way("ollama"), policy.later("open:ollama", "http", "")):
        assert (caller.client, set(caller.agents), caller.admitted) == ("open:ollama", {"house"}, True)
        assert access.may_model(caller, "small")
        assert access.may_tool(caller, "level")  # by an agent
        with pytest.raises(Forbidden):
            access.check_manage(caller, "pull models")


@pytest.mark.parametrize(("role", "agents"), [("viewer", {"house"}), ("operator", {"house", "car"}), ("", set())])
def test_open_way_has_the_role_that_is_named_for_it(role: str, agents: set[str]) -> None:
    """And no other, whatever is the default."""
    named = policy("operator", msgspec.structs.replace(ACCESS, ollama=role))
    for caller in (named.open_way("ollama"), named.later("open:ollama", "http", "operator")):
        assert (caller.role, set(caller.agents), caller.admitted) == (role, agents, bool(role))
