"""The answer readers against the rules written a second time, on any text and on texts made of the rules' own words."""

import pytest
import slow_rules
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformers_agci.experiments.benchmarks import crpe, hallusionbench, mmmu_pro, pope, scienceqa, textvqa
from transformers_agci.experiments.benchmarks.contractions import CONTRACTIONS

PIECES = [
    *"ABCDEFGHIJKabcno .,!?;:'\"()[]{}*$_-/\\+=@`<>#%&\n\t\r\x0b\x85\xa0\u2028\u3000éİßΣς٣²½’\x00",
    "\ud800",
    "😀",
    "Answer:",
    "Answer: B",
    "The answer is ",
    "The answer is C.",
    "(A)",
    "(B)",
    " A ",
    "B.",
    "C. ",
    "No",
    "no",
    "not",
    "yes",
    "Yes",
    " the ",
    " an ",
    "dont",
    "'s",
    " one ",
    "Im",
    "1,000",
    "none",
    "3.14",
    "red apple",
    "OCR tokens: ",
    "Question: ",
    " Short answer:",
    "Reference OCR token: ",
    "Reference OCR token:",
    "....",
    "x y z w ",
]
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
options = st.lists(
    st.sampled_from(["red apple", "Red", "a", "DNA", "", "the answer", "3.14", "X y"]), min_size=1, max_size=12
)
thorough = settings(max_examples=150, deadline=None)


@thorough
@given(texts)
@example("The answer is BThe answer is C.")  # the wildcard takes the T of the second statement
@example("The answer is B\n")
@example("B. ")
def test_scienceqa(text: str) -> None:
    assert scienceqa.read_answer(text) == slow_rules.scienceqa_letter(text)


@thorough
@given(texts)
@example("no\n")
@example("I am not, sure")
@example(".no")
def test_pope(text: str) -> None:
    assert pope.read_answer(text) == slow_rules.pope_word(text)


@thorough
@given(texts)
@example("." * 40)
@example("a.b 1.٣ x.²")
@example("couldntve an Im")
def test_textvqa_normalisation(text: str) -> None:
    assert textvqa.normalise(text) == slow_rules.vqa_normal_form(text, CONTRACTIONS)


@thorough
@given(texts)
def test_textvqa_question(prompt: str) -> None:
    assert textvqa.question_of(prompt) == slow_rules.textvqa_question(prompt)


@thorough
@given(
    st.sampled_from(["red", "Red!", "two", "", "blue"]),
    st.lists(st.sampled_from(["red", "a red", "2", "the", "blue", "green"]), min_size=10, max_size=10),
)
def test_textvqa_score(answer: str, humans: list[str]) -> None:
    wanted = slow_rules.vqa_score(textvqa.normalise(answer), [textvqa.normalise(h) for h in humans])
    assert textvqa.soft_score(answer, humans) == pytest.approx(wanted, abs=1e-9)


@thorough
@given(texts)
@example("yes/no")
@example("**Yes**")
@example("不yes")
def test_hallusionbench_yes_no(text: str) -> None:
    assert hallusionbench.read_answer(text) == slow_rules.yes_no(text)


@thorough
@given(texts, options)
@example("B,.", ["x"] * 4)
@example("DNA suggests C", ["x"] * 10)
@example("one two three four five six", ["", "six", "one"])
def test_mmmu_pro(response: str, choices: list[str]) -> None:
    assert mmmu_pro.read_answer(response, choices) == slow_rules.mmmu_letter(response, choices)


@thorough
@given(st.text(max_size=2), st.text(max_size=2))
def test_crpe(answer: str, correct: str) -> None:
    assert crpe.is_right(answer, correct) == (len(answer) < 2 and len(correct) < 2 and answer == correct)


@pytest.mark.parametrize("matches, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_scores_by_number_of_matches(matches: int, score: float) -> None:
    humans = ["red"] * matches + [f"other{n}" for n in range(10 - matches)]
    assert textvqa.soft_score("Red.", humans) == pytest.approx(score)


def test_the_contractions_are_the_evaluations() -> None:
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["somebody'd"] == "somebodyd"  # an odd one, as in the table
    assert textvqa.normalise("Im") == "im"  # a capitalised key cannot match


@pytest.mark.parametrize(
    ("reply", "code"),
    [("“Correct”", "1"), ("correct, not incorrect", "0"), ("not correct", "1"), ("wrong", "2"), ("", "2")],
)
def test_hallusionbench_judge_replies(reply: str, code: str) -> None:
    assert hallusionbench.code_of_reply(reply) == code


@pytest.mark.parametrize(("reply", "code"), [("SAME", "1"), ("not the same", "1"), ("different", "0"), ("", "0")])
def test_hallusionbench_sameness_replies(reply: str, code: str) -> None:
    assert hallusionbench.same_of_reply(reply) == code
