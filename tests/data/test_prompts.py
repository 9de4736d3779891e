"""Templates of questions and answers: what is in them, what is refused."""

from __future__ import annotations

import pytest

from nufm.data.images import INTERACTION_NAMES
from nufm.data.prompts import FOLDER, load_prompt, parse_prompt, prompt_names

GOOD = """# comment
[system]
You look.
[user]
Which?
[missing]
No {view}.
[answer]
It is
[labels]
muon
electron
neutral
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_template_has_its_parts():
    prompt = parse_prompt(GOOD, "mine", "mine.txt")
    assert (prompt.name, prompt.system, prompt.user, prompt.answer) == ("mine", "You look.", "Which?", "It is")
    assert prompt.labels == ("muon", "electron", "neutral")
    assert prompt.question([True, True]) == "Which?"
    assert prompt.question([True, False]) == "No YZ. Which?"
    assert prompt.question([False, False]) == "No XZ. No YZ. Which?"
    assert prompt.continuation(1) == (" electron.", "")
    assert prompt.continuation(0, " It is long. ") == (" muon.", " It is long.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed("[user]\nWhich?\n", ""), r"sections are \[system\], \[missing\]"),
        (GOOD + "[user]\nAgain?\n", "once"),
        (GOOD + "[other]\n", r"\[other\]"),
        ("no sections", "sections are none"),
        (changed("Which?", ""), r"\[user\] is empty"),
        (changed("It is", ""), r"\[answer\] is empty"),
        (changed("neutral\n", ""), "expected 3 different ones"),
        (changed("neutral", "muon"), "'muon', 'electron', 'muon'"),
        (changed("neutral", "n.c"), "label 'n.c' holds '.'"),
        (changed("{view}", "view"), r"expected a sentence with \{view\}"),
        (changed("{view}", "{view} {other}"), r"expected a sentence with \{view\}"),
    ],
)
def test_what_is_no_template_is_refused_with_its_file(text, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_prompt(text, "mine", "mine.txt")
    assert str(error.value).startswith("mine.txt: ")


def test_all_templates_of_the_package_are_templates_and_name_their_labels_in_the_question():
    assert {"physics", "bare", "brief", "symbols"} <= set(prompt_names())
    for name in prompt_names():
        prompt = load_prompt(name)
        assert len(prompt.labels) == len(INTERACTION_NAMES)
        assert all(label in prompt.user for label in prompt.labels), name
        assert prompt.answer == "I classify the pixel maps as"  # arXiv 2509.08461, section 2


def test_the_ablation_defines_nothing():
    """The prompt without physics has no word of tracks, showers or gaps; the default has them all."""
    for word in ("track", "shower", "gap", "vertex"):
        assert word in load_prompt("physics").system
        assert word not in load_prompt("bare").system + load_prompt("bare").user


def test_symbols_are_the_names_of_the_classes():
    assert load_prompt("symbols").labels == INTERACTION_NAMES


def test_a_template_of_the_user_is_found_by_its_path(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(GOOD, encoding="utf-8")
    assert load_prompt(str(path)).name == "mine"
    with pytest.raises(FileNotFoundError, match=r"expected one of bare, brief, physics, symbols, or the path"):
        load_prompt("nothing")
    assert (FOLDER / "physics.txt").is_file()
