"""How clients of any API say how a plain model is to choose tokens, and what it does where they say nothing. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, structs

from edged.types import JSON, Sampling
from edged.wire.dialogue import convert

DEFAULT_TEMPERATURE = 0.0  # as an agent's: small models go astray at OpenAI's 1
# ... but who sets top_p, top_k or min_p wants to sample; and without a temperature it would change nothing.
SAMPLING_TEMPERATURE = 1.0


class Samplers(Struct, frozen=True, kw_only=True):
    """Ways of choosing tokens beside temperature, top_p and seed, with bounds. Fields as in types.Sampling."""

    top_k: Annotated[int, Meta(le=2**31 - 1)] = 0
    min_p: Annotated[float, Meta(le=1)] = 0.0
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0

    @property
    def named(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) != getattr(UNSET, name))

    @property
    def need_temperature(self) -> bool:
        """Whether one is set that changes nothing about the likeliest token."""
        return self.top_k > 1 or self.min_p > 0


UNSET = Samplers()


def read_samplers(given: dict[str, JSON], where: str = "") -> Samplers:
    """Samplers by their names, found at `where`. Raises BadParameter."""
    made = convert(given, Samplers, where)
    return structs.replace(made, top_k=max(0, made.top_k), min_p=max(0.0, made.min_p))  # -1: unset


def sampling(temperature: float | None, top_p: float | None, seed: int | None, samplers: Samplers) -> Sampling:
    """How a plain model chooses tokens."""
    if temperature is None:
        samples = top_p is not None or samplers.need_temperature
        temperature = SAMPLING_TEMPERATURE if samples else DEFAULT_TEMPERATURE
    return Sampling(temperature, 1.0 if top_p is None else top_p, seed, **structs.asdict(samplers))
