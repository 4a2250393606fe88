"""HallusionBench: 1,129 yes/no questions on 346 figures, 951 of them with an image; aggregated as evaluation.py does.

The official judge is GPT-4: its codes are accepted where rows carry them. Without a judge a Yes/No rule gives them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Item, Prompt, Rows, Score, Scoring
from transformers_agci.experiments.benchmarks.joining import answer_of, by_key, check_join, field_of, read_scored

INSTRUCTION = "The answer should only contain 'Yes' or 'No', without reasoning process."
WRONG, RIGHT, UNCLEAR = "0", "1", "2"
CODE, SAME = "gpt4v_output_gpt_check", "same"
POPULATIONS = {1129: "1129 questions (all)", 951: "951 questions (those with an image)"}
KEY_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id")
CATEGORIES = ("VD", "VS")


class Judged(NamedTuple):
    """One question with its verdict: code 0 wrong, 1 right, 2 unclear; `same`: the answer agrees with figure 0's."""

    key: tuple[str, ...]  # category, subcategory, set, figure, question
    visual_input: str
    gold: str  # "0" or "1"
    parsed: str
    code: str
    same: str | None
    correct: bool

    @property
    def pair(self) -> tuple[str, ...]:
        """The question, whatever the figure."""
        return (*self.key[:3], self.key[4])

    @property
    def figure(self) -> tuple[str, ...]:
        """The figure, whatever the question."""
        return self.key[:4]

    @property
    def is_original(self) -> bool:
        """Figure 0: the original image (VD), or no image (VS)."""
        return self.key[3] == "0"


def read_answer(text: str) -> str:
    """ "yes", "no" or "unclear": the first word, else the only one of the two words that occurs.

    >>> [read_answer(text) for text in ("**Yes**", "The answer is no.", "Yes\\nNo", "eyes", "Is it yes or no?")]
    ['yes', 'no', 'yes', 'unclear', 'unclear']
    """
    words = re.findall(r"\w+", text.lower())
    if words and words[0] in ("yes", "no"):
        return str(words[0])
    there = {"yes", "no"}.intersection(words)
    return there.pop() if len(there) == 1 else "unclear"


def code_of_reply(reply: str) -> str:
    """The code of a judge's reply on correctness.

    >>> [code_of_reply(text) for text in ("Correct.", "INCORRECT", "not correct", "wrong")]
    ['1', '0', '1', '2']
    """
    reply = reply.lower()
    return WRONG if "incorrect" in reply else RIGHT if "correct" in reply else UNCLEAR


def same_of_reply(reply: str) -> str:
    """The code of a judge's reply on sameness: "1" wherever the word occurs, "not the same" included."""
    return "1" if "same" in reply.lower() else "0"


def score(inputs: Inputs) -> Score:
    """Accuracy per question, per question pair, per figure; easy and hard; per category; and who is to blame."""
    answers = read_scored(*inputs.answers)
    joined = _joined(inputs, answers)
    rows = [pair.answer for pair in joined]
    judge = _judge(inputs.judge, rows)
    judged = [_verdict(pair.answer, pair.question, judge) for pair in joined]
    items = [_item(row, sourced.row) for row, sourced in zip(judged, rows, strict=True)]
    figures: Row = {
        **aggregate(judged),
        "count": len(judged),
        "unclear": sum(row.code == UNCLEAR for row in judged),
        "judge": "yes/no rule" if judge == "yes-no" else "codes",
        "by_category": {c: aggregate([r for r in judged if r.key[0] == c]) for c in _categories(judged)},
        "consistency": consistency(judged),
        "yes_no_bias": yes_no_bias(judged),
        "blame": diagnosis(judged),
    }
    notes = (
        ["Scored by the Yes/No rule, not by the official judge (GPT-4): compare only with figures of the same rule."]
        if judge == "yes-no"
        else []
    )
    if judge == "yes-no" and all("judge_reply" in sourced.row for sourced in rows):
        notes.append("The rows also hold a judge's replies: `judge` replies scores by them.")
    if figures["blame"] is None:
        notes.append("Language and vision shares are left out: they need `same` codes and every pair's figure-0 row.")
    return Score(
        POPULATIONS.get(len(judged), f"{len(judged)} questions (neither 1129 nor 951)"), figures, items, tuple(notes)
    )


def _item(row: Judged, fields: Row) -> Item:
    words = {"0": "no", "1": "yes"}
    gold = words.get(row.gold, row.gold) if row.parsed in ("yes", "no", "unclear") else row.gold
    return Item(
        "_".join(row.key),
        row.parsed,
        gold,
        float(row.correct),
        row.figure,
        row.key,
        fields={"code": row.code, "visual_input": row.visual_input},
    )


def aggregate(rows: Sequence[Judged]) -> Row:
    """aAcc over questions, qAcc over pairs, fAcc over figures (those of VS figure 0, which is none, left out)."""
    easy = [row for row in rows if row.visual_input != "2"]
    hard = [row for row in rows if row.visual_input == "2"]
    shares = {
        "aAcc_pct": [row.correct for row in rows],
        "qAcc_pct": _all_right(rows, lambda row: row.pair),
        "fAcc_pct": _all_right(_with_figure(rows), lambda row: row.figure),
        "easy_pct": _all_right(easy, lambda row: row.pair),
        "hard_pct": _all_right(hard, lambda row: row.pair),
    }
    return {name: _percent(verdicts) for name, verdicts in shares.items()}


def _with_figure(rows: Iterable[Judged]) -> list[Judged]:
    return [row for row in rows if not (row.key[0] == "VS" and row.is_original)]


def _all_right(rows: Iterable[Judged], group: Callable[[Judged], Any]) -> list[bool]:
    groups: dict[Any, bool] = defaultdict(lambda: True)
    for row in rows:
        groups[group(row)] &= row.correct
    return list(groups.values())


def _percent(verdicts: Sequence[bool]) -> float | None:
    return 100 * sum(verdicts) / len(verdicts) if verdicts else None


def _categories(rows: Sequence[Judged]) -> list[str]:
    return sorted({row.key[0] for row in rows})


def consistency(rows: Sequence[Judged]) -> Row:
    """Per figure: all questions right, some, or none, in percent of the figures."""
    figures: dict[Any, list[bool]] = defaultdict(list)
    for row in _with_figure(rows):
        figures[row.figure].append(row.correct)
    kinds = ["correct" if all(v) else "inconsistent" if any(v) else "wrong" for v in figures.values()]
    return {f"{kind}_pct": _percent([k == kind for k in kinds]) for kind in ("correct", "inconsistent", "wrong")}


def yes_no_bias(rows: Sequence[Judged]) -> Row:
    """How much more often Yes is said than true, and the share of wrong answers where No was true (None: all right)."""
    said = sum(row.correct == (row.gold == "1") for row in rows) / len(rows)
    true = sum(row.gold == "1" for row in rows) / len(rows)
    wrong = [row.gold == "0" for row in rows if not row.correct]
    return {"pct_diff": said - true, "fp_ratio": sum(wrong) / len(wrong) if wrong else None}


def diagnosis(rows: Sequence[Judged]) -> Row | None:
    """Language hallucination, visual illusion or mixed, in percent of the blamed rows; None where it cannot be told."""
    original = {row.pair: row.code for row in rows if row.is_original}
    if any(row.pair not in original for row in rows) or any(row.same is None for row in rows if not row.is_original):
        return None
    blamed = [cause for row in rows if (cause := _cause(row, original[row.pair]))]
    if not blamed:
        return None
    return {f"{cause}_pct": _percent([b == cause for b in blamed]) for cause in ("LH", "VI", "Mixed")}


def _cause(row: Judged, original: str) -> str | None:
    """LH (language), VI (vision), Mixed, or None for a row that nobody is to be blamed for."""
    if row.code == RIGHT:
        return None
    wrong, same, vision = row.code == WRONG, row.same == "1", row.key[0] == "VD"
    if row.is_original:
        return "VI" if vision else "LH" if wrong else None
    if vision:
        return "Mixed" if original == RIGHT and wrong and same else "VI"
    if original == WRONG:
        return "LH" if wrong and same else "Mixed"
    if original == RIGHT and wrong and row.visual_input == "2":
        return "LH" if same else "VI"
    return "VI"


class Answered(NamedTuple):
    """An answer with its question's fields, and the question, which may stand in another file."""

    answer: SourcedRow
    question: SourcedRow


def _joined(inputs: Inputs, answers: Sequence[SourcedRow]) -> list[Answered]:
    """The answers with the questions' fields; all questions, or all with an image, must be answered once."""
    given = [(_key(sourced), sourced) for sourced in answers]
    answered = dict(given)
    if not inputs.questions:
        check_join(inputs, answered, given)
        return [Answered(sourced, sourced) for sourced in answers]
    questions = by_key(read_scored(*inputs.questions), _key, inputs.official)
    if inputs.official:  # the official program takes whatever rows the file has, but each once
        asked = [key for key in questions if key in answered]
    else:
        asked = [key for key, sourced in questions.items() if str(field_of(sourced, "visual_input")) != "0"]
        asked = asked if set(answered) == set(asked) else list(questions)
    check_join(inputs, asked, given)
    return [
        Answered(
            SourcedRow(sourced.where, {**sourced.row, **questions[key].row, **_answer_fields(sourced.row)}),
            questions[key],
        )
        for key, sourced in given
    ]


def _answer_fields(row: Row) -> Row:
    names = ("prediction", "model_prediction", CODE, SAME, "judge_reply", "same_reply")
    return {name: row[name] for name in names if name in row}


def _judge(wanted: str, rows: Sequence[SourcedRow]) -> str:
    """Which verdict the rows are scored by: "codes", "replies" or "yes-no"."""
    coded = sum(CODE in sourced.row for sourced in rows)
    if wanted == "auto":
        if 0 < coded < len(rows):
            bare = next(sourced for sourced in rows if CODE not in sourced.row)
            raise InputError(
                f"{bare.where}: {coded} of {len(rows)} rows carry '{CODE}', this one does not; "
                "finish the judging, or score by `judge` yes-no."
            )
        return "codes" if coded else "yes-no"
    return wanted


def _verdict(sourced: SourcedRow, question: SourcedRow, judge: str) -> Judged:
    key, row = _key(sourced), sourced.row
    gold = str(field_of(question, "gt_answer"))
    if gold not in (WRONG, RIGHT):
        raise InputError(f"{question.where}: 'gt_answer' must be 0 or 1, but is {short(gold)}.")
    same = str(row[SAME]) if SAME in row else None
    if judge == "codes":
        code = parsed = str(field_of(sourced, CODE))
        if code not in (WRONG, RIGHT, UNCLEAR):
            raise InputError(f"{sourced.where}: '{CODE}' must be 0, 1 or 2, but is {short(row[CODE])}.")
    elif judge == "replies":
        code = parsed = code_of_reply(answer_of(sourced, "judge_reply"))
        same = same_of_reply(answer_of(sourced, "same_reply")) if "same_reply" in row else same
    else:
        parsed = read_answer(answer_of(sourced, "prediction", "model_prediction"))
        code = UNCLEAR if parsed == "unclear" else RIGHT if parsed == ("yes" if gold == "1" else "no") else WRONG
        same = None
    excused = key[0] == "VS" and key[3] == "0" and code == UNCLEAR  # "don't know" is honest without an image
    return Judged(key, str(field_of(question, "visual_input")), gold, parsed, code, same, code == RIGHT or excused)


def _key(sourced: SourcedRow) -> tuple[str, ...]:
    return tuple(str(field_of(sourced, name)) for name in KEY_FIELDS)


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """Official: the bare question, with or without image. Paper: those with one, and a Yes/No instruction."""
    sourced = SourcedRow(f"HallusionBench question {'_'.join(str(row.get(name)) for name in KEY_FIELDS)}", row)
    question, filename = field_of(sourced, "question"), row.get("filename")
    if not isinstance(question, str):
        raise InputError(f"{sourced.where}: 'question' must be text, but is {short(question)}.")
    shows = str(field_of(sourced, "visual_input")) != "0"
    if shows and not isinstance(filename, str):
        raise InputError(f"{sourced.where}: 'filename' must be the image's path, but is {short(filename)}.")
    if protocol == "paper" and not shows:
        return None
    text = f"{question}\n{INSTRUCTION}" if protocol == "paper" else question
    group = tuple(str(row.get(name)) for name in KEY_FIELDS[:4])
    return Prompt(text, question, (str(filename),) if shows else (), group, 128 if protocol == "paper" else 512)


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Questions from one file, or from the folder with HallusionBench.json."""
    return read_scored(path / "HallusionBench.json" if path.is_dir() else path)


def looks_like(row: Row) -> bool:
    """Rows of HallusionBench: category VD or VS with set and figure ids."""
    return row.get("category") in CATEGORIES and "figure_id" in row


BENCHMARK = Benchmark(
    "hallusionbench",
    "HallusionBench",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "aAcc_pct", options=("questions", "judge")),
    images=("data", "hallusion_bench", ""),
    protocol="paper",
)
