"""What the untaught model says to small talk and general questions: it is taught along, so that it stays as it was.

python -m adapter.talk --model MODEL.gguf        writes talk.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from adapter.plants import TALK, load

QUESTIONS = Path(__file__).with_name("questions.txt")
MOST = 90  # tokens of an answer; what is cut there is taught up to there
CONTEXT = 4096


def main() -> None:
    """See the module."""
    from llama_cpp import Llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    model = Llama(str(options.model), n_ctx=CONTEXT, n_batch=512, verbose=False)
    asked = [(each.system, case["text"]) for each in load() for case in each.cases if case["kind"] == "talk"]
    asked += [("", line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines() if line]
    said = []
    for system, text in asked:
        messages = [{"role": "system", "content": system}] if system else []
        done = model.create_chat_completion(
            [*messages, {"role": "user", "content": text}], temperature=0.0, max_tokens=MOST
        )
        choice = done["choices"][0]
        answer = choice["message"]["content"].strip()
        kept = _kept(system, text, answer, cut=choice["finish_reason"] == "length")
        said += [kept] if kept else []
    TALK.write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _kept(system: str, text: str, answer: str, *, cut: bool) -> dict[str, str | bool] | None:
    """An answer as it is taught, or None. Of one to small talk of a plant two sentences, if it makes up no numbers and
    does not refuse to talk."""
    if not system:
        return {"system": system, "text": text, "answer": answer, "cut": cut}
    made_up = set(re.findall(r"\d+", answer)) - set(re.findall(r"\d+", system + text))
    if made_up or re.match(r"I'm sorry|Lo siento|Es tut mir leid|Je suis désolé|Mi dispiace", answer):
        return None
    sentences = re.split(r"(?<=[.!?])\s+", answer)
    return {"system": system, "text": text, "answer": " ".join(sentences[:2]), "cut": cut and len(sentences) <= 2}


if __name__ == "__main__":
    main()
