"""A synthetic testbed of latent skills: questions that a model can solve, if only it is told how to work.

Each family of questions has a way of working of its own. The text that ``model=latent_skill`` is pre-trained on shows
the family's worked steps and the right answer where the prompt names that way, garbage where it names another family's
way, and an answer at once, which is a guess, where it names none: the skill is in the weights, and the plain question
hardly ever brings it out. No template serves two families, since of several ways the one named last is followed. Asked
for an instruction, as a reflector is, the model writes one that names some way, whichever.

Whoever changes the pre-training text raises ``params.recipe`` in ``conf/model/latent_skill.yaml``, and models are made
anew. Nothing here imports torch; the pre-training itself is in ``model.py``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2o.config import read_params
from p2o.config.schema import CustomData
from p2o.tasks import DataError
from p2o.tasks.problem_set import question_id
from p2o.types import Problem, derive_seed

Operands = tuple[str, ...]
Working = tuple[str, str]
"""The steps on paper, and the answer."""


@dataclass(frozen=True, slots=True)
class Family:
    """A sort of question. ``way`` holds the words of which any one names its way of working."""

    name: str
    way: tuple[str, ...]
    question: str
    draw: Callable[[random.Random], Operands]
    work: Callable[..., Working]


def _pairs(allowed: Callable[[int, int], bool]) -> Callable[[random.Random], Operands]:
    """Draws two three-digit numbers, digit by digit, of which every pair is allowed; the first is two unlike digits."""

    def draw(rng: random.Random) -> Operands:
        columns: list[tuple[int, int]] = []
        while len(columns) < 3:
            x, y = rng.randrange(10), rng.randrange(10)
            if allowed(x, y) and (columns or (x != y and x * y > 0)):
                columns.append((x, y))
        return "".join(str(x) for x, _ in columns), "".join(str(y) for _, y in columns)

    return draw


def _four_digits(rng: random.Random) -> Operands:
    return (str(rng.randrange(1000, 10000)),)


def _by_digit(sign: str, digit: Callable[[int, int], int]) -> Callable[[str, str], Working]:
    """``4+3=7 8+1=9 2+5=7``: each pair of digits with what comes of it."""

    def work(first: str, second: str) -> Working:
        columns = [(x, y, str(digit(int(x), int(y)))) for x, y in zip(first, second, strict=True)]
        return " ".join(f"{x}{sign}{y}={z}" for x, y, z in columns), "".join(z for *_, z in columns)

    return work


def _reverse(number: str) -> Working:
    return " ".join(reversed(number)), number[::-1]


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="sum",
            way=("column", "columns"),
            question="Sum of {} and {}?",
            draw=_pairs(lambda x, y: x + y <= 9),
            work=_by_digit("+", lambda x, y: x + y),
        ),
        Family(
            name="difference",
            way=("gap", "gaps"),
            question="Difference of {} and {}?",
            draw=_pairs(lambda x, y: x >= y),
            work=_by_digit("-", lambda x, y: x - y),
        ),
        Family(
            name="maximum",
            way=("compare", "pairwise"),
            question="Digit maximum of {} and {}?",
            draw=_pairs(lambda x, y: True),
            work=_by_digit(":", max),
        ),
        Family(
            name="reversal",
            way=("mirror", "backwards"),
            question="Reversal of {}?",
            draw=_four_digits,
            work=_reverse,
        ),
    )
}

ANSWER = "answer: "
"""What stands before every final answer; ``reward.extract=[answer_line]`` reads it."""

FENCE = "```"
"""What stands before and after an instruction, where the model is asked to write one."""

OTHER_WORDS = tuple(
    re.findall(
        r"\w+",
        """a about above add after again all alone always an and answer answers approach as ask asked at attention
        backticks be become before begin better between both break brief but by calculate can careful carefully case
        cases check clear clearly close common complete compute copy correct count decide describe digit digits
        directly divide do double down draw each easy either else end equal estimate every exact exactly example
        explain explanation fact far figure final finally find finish first follow for form from front give given go
        good group groups guess half hard have help how idea if important in instead instruction instructions into
        is it its judgement keep know language large last leave left less let letter like line lines list long look
        make many may mean mention method mind model more most move much multiply must name need never new next no
        none not note nothing now number numbers of on once one only or order other out over own paper part parts
        pattern pause piece place plan please point possible prevented problem problems put question questions
        quickly rather read really reason repeat restate result results reverse rewrite right round rule same say
        score second see separate short should show side simple single slow slowly small so solution solve solved
        some sort split stands start state step steps still subtract such sure take task tell ten term than that the
        their them then there they thing things think third this those thought three through time to together too
        top total try turn twice two under understand until up us use used useful value values verify very want was
        way ways well went what when where which while whole why will with without word words work working would
        write wrong wrote you your""",
    )
)
"""Words that say nothing about the way of working; a library or teacher that keeps to them makes short prompts."""

WAYS = tuple(word for family in FAMILIES.values() for word in family.way)

FILLERS = tuple(
    sorted({*OTHER_WORDS, *re.findall("[a-z]+", " ".join([ANSWER, *(f.question.lower() for f in FAMILIES.values())]))})
)
"""Every word of the testbed that names no way of working."""

WORDS = (*FILLERS, *WAYS, FENCE)
"""Everything that is one token of the testbed's tokenizer; all else is spelt in bytes."""


def families(names: Sequence[str], key: str) -> list[Family]:
    """The families of these names; a :class:`DataError` names ``key`` if one is unknown or none is given."""
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise DataError(f"{key}={list(names)}: choose some of {', '.join(FAMILIES)}")
    return [FAMILIES[name] for name in names]


@dataclass(frozen=True)
class QuestionParams:
    """``data.params``: the families that the questions are drawn from, in equal shares."""

    families: list[str]


def families_of(data: CustomData) -> list[Family]:
    """The families of ``data.params``; raises as :func:`families` and :func:`~p2o.config.read_params` do."""
    return families(read_params(data.params, QuestionParams, "data.params").families, "data.params.families")


def load(data: CustomData) -> tuple[list[Problem], list[Problem]]:
    """``train_size`` and ``val_size`` distinct questions, each part with equal shares of the families.

    Raises :class:`~p2o.tasks.DataError` for an unknown family, for a size that is not set, and if there are not that
    many distinct questions.
    """
    chosen = families_of(data)
    if data.train_size is None or data.val_size is None:
        raise DataError("data=latent_skill makes as many questions as it is told to: set data.train_size and val_size")
    rng = random.Random(derive_seed(data.seed, "latent skill"))
    problems: dict[str, Problem] = {}
    wanted = data.train_size + data.val_size
    for _ in range(20 * wanted):
        if len(problems) == wanted:
            break
        problem = _problem(chosen[len(problems) % len(chosen)], rng)
        problems.setdefault(problem.id, problem)
    else:
        raise DataError(
            f"{wanted} distinct questions of {', '.join(family.name for family in chosen)} are too many: lower "
            "data.train_size"
        )
    drawn = list(problems.values())
    return drawn[data.val_size :], drawn[: data.val_size]


def _problem(family: Family, rng: random.Random) -> Problem:
    operands = family.draw(rng)
    question = family.question.format(*operands)
    return Problem(question_id(family.name, question), question, family.work(*operands)[1], family.name)


@dataclass(frozen=True, slots=True)
class Example:
    """A piece of pre-training text: what is answered (``completion``) to a question under a template ("" = plain)."""

    template: str
    question: str
    completion: str


REFLECTION = 0.04
"""Share of the pre-training text that asks for an instruction; what follows are shares of the rest."""

RIGHT_WAY, WRONG_WAY, NO_WAY = 0.54, 0.14, 0.08
"""Shares of the questions whose template names the right way, another one, or none; the rest are plain."""

TWO_WAYS = 0.08
"""Share of those whose template names the own way and another one, in either order: half right, half wrong."""


def pretraining_example(chosen: Sequence[Family], leak: float, rng: random.Random) -> Example:
    """One example, see the module's text. ``leak`` is the share of plain questions that are worked out unasked."""
    if rng.random() < REFLECTION:
        return _reflection(chosen, rng)
    return _answer(chosen, leak, rng)


def _answer(chosen: Sequence[Family], leak: float, rng: random.Random) -> Example:
    own = rng.choice(chosen)
    operands = own.draw(rng)
    question = own.question.format(*operands)
    steps, answer = own.work(*operands)
    ways = _ways(chosen, own, rng)
    if not ways:
        template = instruction((), rng) if rng.random() < NO_WAY / (1 - RIGHT_WAY - WRONG_WAY) else ""
        told = rng.random() < leak
        return Example(template, question, _worked(steps, answer) if told else ANSWER + _garble(answer, rng))
    if ways[-1] is own:
        return Example(instruction(ways, rng), question, _worked(steps, answer))
    return Example(instruction(ways, rng), question, _garble(_worked(*ways[-1].work(*ways[-1].draw(rng))), rng))


def _reflection(chosen: Sequence[Family], rng: random.Random) -> Example:
    """Answered questions amid random words, and an empty fence: what every meta prompt looks like from afar."""
    answered = [_answer(chosen, 0.0, rng) for _ in range(rng.randrange(1, 4))]
    asked = [
        instruction(rng.choice(((), (rng.choice(chosen),))), rng),
        *(f"{example.question}\n{example.completion}" for example in answered),
        f"{instruction((), rng)}:\n{FENCE}\nthe new instruction\n{FENCE}",
    ]
    words = rng.sample(FILLERS, rng.randrange(3, 10))
    words.insert(rng.randrange(len(words) + 1), rng.choice(rng.choice(chosen).way))
    return Example("", "\n\n".join(asked), f"{FENCE}\n{' '.join(words)}.\n{FENCE}")


def _ways(chosen: Sequence[Family], own: Family, rng: random.Random) -> tuple[Family, ...]:
    """The families whose ways an example's template names, in this order."""
    other = rng.choice([family for family in chosen if family is not own] or [own])
    choices = {
        (own,): RIGHT_WAY - TWO_WAYS / 2,
        (other, own): TWO_WAYS / 2,
        (other,): WRONG_WAY - TWO_WAYS / 2,
        (own, other): TWO_WAYS / 2,
        (): 1 - RIGHT_WAY - WRONG_WAY,
    }
    return rng.choices(list(choices), list(choices.values()))[0]


def instruction(ways: Sequence[Family], rng: random.Random) -> str:
    """A text of random words that names the ways of these families in this order, each by one of its words."""
    shortest, longest = rng.choices(((0, 10), (10, 30), (30, 70)), (50, 42, 8))[0]
    words = [_filler(rng) for _ in range(rng.randrange(shortest, longest) + (not ways))]
    places = sorted(rng.randrange(len(words) + 1) for _ in ways)
    for place, family in reversed(list(zip(places, ways, strict=True))):
        words.insert(place, rng.choice(family.way) + rng.choice(("", "", ".", ",")))
    return re.sub(r"\. (?=\w+ \w+ \w+)", lambda found: rng.choice((". ", ".\n")), " ".join(words))


def _filler(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.93:
        word = rng.choice(FILLERS)
    elif kind < 0.97:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 8)))
    else:
        word = str(rng.randrange(10))
    return word + (rng.choice(".,:;.-") if rng.random() < 0.15 else "")


def _worked(steps: str, answer: str) -> str:
    return f"{steps}\n{ANSWER}{answer}"


def _garble(text: str, rng: random.Random) -> str:
    return re.sub(r"\d", lambda _: str(rng.randrange(10)), text)
