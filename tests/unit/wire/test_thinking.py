"""What a model thinks is split off what it answers, whatever the pieces."""

from __future__ import annotations

import pytest

from edged.wire.thinking import Thinking, split, without

CASES = [
    ("plain", "plain"),
    ("", ""),
    ("  two  spaces ", "  two  spaces "),
    ("<think>hm, <b>?</b></think>\n\nYes.", "Yes."),
    ("\n<think>\n</think>\n\nYes. ", "Yes. "),
    ("<think>never closed", ""),
    ("<think>nearly closed</thin", ""),
    ("<thinking>a</thinking>b", "b"),
    ("[THINK]a[/THINK]b", "b"),
    ("<think>a</think><think>b</think> c", "c"),
    ("<thin>b", "<thin>b"),
    ("<", "<"),
    ("The tag <think> opens, </b> closes.", "The tag <think> opens, </b> closes."),
    ('{"a": "<think>"}', '{"a": "<think>"}'),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_thinking_is_split_off(text: str, answer: str, size: int) -> None:
    """Whole, and in pieces of any size."""
    thinking = Thinking()
    words = "".join(thinking.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert words + thinking.finish() == without(text) == answer


def test_text_is_held_back_only_while_a_tag_may_begin() -> None:
    """A reader of a stream sees the rest at once."""
    thinking = Thinking()
    assert [thinking.feed(piece) for piece in ("<", "th", "ree", " <think>")] == ["", "", "<three", " <think>"]


def test_tag_that_the_template_opens_counts() -> None:
    """Of a whole text it shows by the tag that closes."""
    thinking = Thinking("<|im_start|>assistant\n<think>\n")
    assert thinking.feed("hm</thi") + thinking.feed("nk>Yes") + thinking.feed(".") == "Yes."
    assert without("hm</think>\n\nYes.") == "Yes."


UNOPENED = [
    ("hm, <b>?</think>\n\nYes.", "Yes.", "hm, <b>?"),
    ("\n</think>\n\nYes.", "Yes.", ""),
    ("</think>Yes.", "Yes.", ""),
    ("hm</think><think>more</think>Yes.", "Yes.", "hmmore"),
    ("<think>hm</think>Yes, as </think> closes.", "Yes, as </think> closes.", "hm"),
    ("Between <think> and </think> it thinks.", "Between <think> and </think> it thinks.", ""),
    ("Yes.", "Yes.", ""),
    ("<think>never closed", "", "never closed"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "answer", "thought"), UNOPENED)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_that_begins_in_a_thought_is_split_at_the_tag_that_closes(
    text: str, answer: str, thought: str, size: int
) -> None:
    """What was thought is kept apart, and comes while it is thought."""
    thinking = Thinking(unopened=True)
    words, thoughts = "", ""
    for at in range(0, len(text), size):
        words += thinking.feed(text[at : at + size])
        thoughts += thinking.thoughts()
    words += thinking.finish()
    thoughts += thinking.thoughts()
    assert (words, thoughts.strip()) == split(text) == (answer, thought)
    assert thinking.thought_unopened is text.startswith(("hm", "\n", "</"))
