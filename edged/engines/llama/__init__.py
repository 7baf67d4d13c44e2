"""Runs models. One thread owns every native object; one step of it is schedule, decode, postprocess.

Reading order: `scheduler` (what is computed next), `runner` (the three verbs, for one model), `worker` (the thread),
`engine` (its asyncio face). Importing this package loads no native library: that happens with the first model.
"""

from edged.engines.llama.engine import LlamaEngine

__all__ = ["LlamaEngine"]
