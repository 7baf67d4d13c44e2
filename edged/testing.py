"""For tests, benchmarks and authors of tools: an engine that follows a script instead of a model.

A configuration uses it with `source = "scripted:/path/to/script.toml"`; `edged.engines.scripted` describes the file.
"""

from edged.engines.scripted import SCHEME, Script, Scripted, ScriptedEngine, read_script

__all__ = ["SCHEME", "Script", "Scripted", "ScriptedEngine", "read_script"]
