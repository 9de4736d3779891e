"""What an image-text model is asked about an event, and how its answer begins: templates as text files.

A template has five sections, each begun by its name in square brackets; lines before the first are comments:

    [system]   what the model is told first
    [user]     the question, behind the two pictures
    [missing]  a sentence for each view that was not read out, with {view} in it
    [answer]   how every answer begins
    [labels]   one line per class, in the order of ``INTERACTION_NAMES``: how the answer goes on

An answer reads "<answer> <label>." and may go on with an explanation. The full stop ends a label, so that no label is
the beginning of another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nufm.data.images import INTERACTION_NAMES, VIEWS

FOLDER = Path(__file__).parent
SECTIONS = ("system", "user", "missing", "answer", "labels")
END_OF_LABEL = "."


@dataclass(frozen=True)
class Prompt:
    """A template.

    Attributes:
        name: as configurations name it.
        system: what the model is told first; may be empty.
        user: the question.
        missing: sentence for a view that was not read out.
        answer: how every answer begins.
        labels: one per class, in the order of ``INTERACTION_NAMES``.
        text: the whole template, from which it can be made again whatever its file says by then.
    """

    name: str
    system: str
    user: str
    missing: str
    answer: str
    labels: tuple[str, ...]
    text: str

    def question(self, present: Sequence[bool]) -> str:
        """What the user asks about an event, of whose views ``present`` were read out."""
        absent = [self.missing.format(view=v.upper()) for v, there in zip(VIEWS, present, strict=True) if not there]
        return " ".join([*absent, self.user])

    def continuation(self, label: int, explanation: str = "") -> tuple[str, str]:
        """What follows ``answer``: the label of a class, and the explanation, each with the space before it."""
        return f" {self.labels[label]}{END_OF_LABEL}", f" {explanation.strip()}" if explanation.strip() else ""


def prompt_names() -> tuple[str, ...]:
    """Templates that nufm has."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def load_prompt(name: str, text: str | None = None) -> Prompt:
    """A template of nufm by its name, or one of yours by its path, which ends in ``.txt``.

    Args:
        name: of the template.
        text: what it said when it was kept; None: what its file says now.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no template.
    """
    path = Path(name).expanduser() if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if text is not None:
        return parse_prompt(text, path.stem, f"kept text of prompt '{name}'")
    if not path.is_file():
        raise FileNotFoundError(
            f"prompt '{name}': there is no {path}; expected one of {', '.join(prompt_names())}, or the path of a .txt"
        )
    return parse_prompt(path.read_text(encoding="utf-8"), path.stem, str(path))


def parse_prompt(text: str, name: str, where: str) -> Prompt:
    """A template from its text.

    Raises:
        ValueError: a section is missing, empty, unknown or there twice; labels of another number, equal ones, or one
            with a full stop in it; a [missing] without {view}.
    """
    parts = re.split(r"^\[(\w+)\][ \t]*$", text, flags=re.MULTILINE)
    names, bodies = parts[1::2], [part.strip() for part in parts[2::2]]
    if sorted(names) != sorted(SECTIONS):
        raise ValueError(
            f"{where}: sections are {', '.join(f'[{n}]' for n in names) or 'none'}, expected each of "
            f"{', '.join(f'[{n}]' for n in SECTIONS)} once"
        )
    section = dict(zip(names, bodies, strict=True))
    for needed in ("user", "answer"):
        if not section[needed]:
            raise ValueError(f"{where}: section [{needed}] is empty; expected a text")
    labels = tuple(line.strip() for line in section["labels"].splitlines() if line.strip())
    if len(labels) != len(INTERACTION_NAMES) or len(set(labels)) < len(labels):
        raise ValueError(
            f"{where}: section [labels] has {', '.join(map(repr, labels)) or 'none'}, expected "
            f"{len(INTERACTION_NAMES)} different ones, for {', '.join(INTERACTION_NAMES)} in this order"
        )
    for label in labels:
        if END_OF_LABEL in label:
            raise ValueError(f"{where}: label '{label}' holds '{END_OF_LABEL}', which ends a label; leave it out")
    missing = section["missing"]
    if missing.replace("{view}", "") == missing or re.search(r"[{}]", missing.replace("{view}", "")):
        raise ValueError(f"{where}: section [missing] is {missing!r}, expected a sentence with {{view}} in it")
    return Prompt(name, section["system"], section["user"], missing, section["answer"], labels, text)
