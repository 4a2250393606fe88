"""POPE: is there an X in the image? Three sets of about 3,000 questions, scored as LLaVA's eval_pope.py does."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import (
    Benchmark,
    Inputs,
    Item,
    Prompt,
    Rows,
    Score,
    Scoring,
    Sums,
)
from transformers_agci.experiments.benchmarks.joining import (
    answer_of,
    by_key,
    check_join,
    check_known,
    field_of,
    identity_of,
    names_of,
    read_scored,
)

CATEGORIES = ("random", "popular", "adversarial")
INSTRUCTION = "Answer the question using a single word or phrase."
NEGATIVE = {"No", "not", "no"}
PREFIX, SUFFIX = "coco_pope_", ".json"
KNOWN_SIZES = {8910: "8910 questions (random has 2910)", 9000: "9000 questions"}


class Label(NamedTuple):
    """One line of a label file."""

    key: Hashable  # (category, image, question), or (category, line) where the label file lacks them
    image: str
    positive: bool


class Answer(NamedTuple):
    """One answer, with its category and, where the files carry them, its key (category, image, question)."""

    sourced: SourcedRow
    category: str
    key: Hashable | None


def read_answer(text: str) -> str:
    """ "yes" or "no" as the official program reads it: "no" only for the words No, no and not before the first dot.

    >>> [read_answer(text) for text in ("No", "NO", "No!", "I am not sure. Yes", "No\\n", "")]
    ['no', 'yes', 'yes', 'no', 'yes', 'yes']
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "yes" if NEGATIVE.isdisjoint(words) else "no"


def score(inputs: Inputs) -> Score:
    """Accuracy, precision, recall and F1 of each category; the mean F1 is what papers quote."""
    if inputs.annotations is None:
        if inputs.questions:
            raise InputError("pope: `questions` needs `annotations`, the folder with coco_pope_<category>.json.")
        pairs = _from_labelled_rows(inputs)
    else:
        pairs = _from_label_files(inputs, inputs.annotations)
    items = [_item(answer, label) for answer, label in pairs]
    return _result(items)


def _item(answer: Answer, label: Label | None) -> Item:
    """A scored answer; one beyond the last label (official pairing only) counts for the yes ratio alone."""
    parsed = read_answer(answer_of(answer.sourced, "prediction", "text"))
    yes = parsed == "yes"
    name = answer.category
    parts = {f"{name}.answers": 1.0, f"{name}.said_yes": float(yes)}
    if label is not None:
        outcome = ("tn", "fp", "fn", "tp")[2 * label.positive + yes]
        parts |= {f"{name}.{kind}": float(kind == outcome) for kind in ("tp", "fp", "tn", "fn")}
    gold = None if label is None else "yes" if label.positive else "no"
    row = answer.sourced.row
    return Item(
        id=row.get("question_id", row.get("id")),
        parsed=parsed,
        gold=gold,
        score=float(parsed == gold),
        cluster=label.image if label else answer.sourced.where,
        key=label.key if label else answer.sourced.where,
        parts=parts,
        fields={"category": name},
    )


def _result(items: Sequence[Item]) -> Score:
    sums: dict[str, float] = defaultdict(float)
    for item in items:
        for part, value in item.parts.items():
            sums[part] += value
    names = list(dict.fromkeys(item.fields["category"] for item in items))
    categories = {name: figures_of(sums, name) for name in sorted(names, key=_order)}
    figures: Row = {"categories": categories}
    complete = all(name in categories for name in CATEGORIES)
    if complete:
        figures["mean_f1"] = sum(categories[name]["f1"] for name in CATEGORIES) / len(CATEGORIES)
    idle = [name for name in categories if categories[name]["tp"] == 0]
    notes = []
    if idle:
        notes.append(f"No true positive in {', '.join(idle)}: the official program divides by zero; 0 is reported.")
    if not complete:
        notes.append("There is no mean F1: it needs random, popular and adversarial.")
    variant = KNOWN_SIZES.get(len(items), f"{len(items)} questions") if complete else f"{len(items)} questions"
    return Score(variant, {"count": len(items), **figures}, items, tuple(notes))


def _order(category: str) -> tuple[int, str]:
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


def figures_of(sums: Sums, category: str) -> Row:
    """The figures of one category from its counts; 0 where the official program would divide by zero."""
    tp, fp, tn, fn = (int(sums[f"{category}.{kind}"]) for kind in ("tp", "fp", "tn", "fn"))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    pairs = tp + fp + tn + fn
    return {
        "accuracy": (tp + tn) / pairs if pairs else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if tp else 0.0,
        "yes_ratio": sums[f"{category}.said_yes"] / sums[f"{category}.answers"],
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def mean_f1(sums: Sums) -> Any:
    """Mean F1 = 2tp / (2tp + fp + fn) over the categories there are; sums may be arrays of resamples."""
    names = sorted({part.rpartition(".")[0] for part in sums})
    return sum(2 * sums[f"{n}.tp"] / (2 * sums[f"{n}.tp"] + sums[f"{n}.fp"] + sums[f"{n}.fn"]) for n in names) / len(
        names
    )


def _from_labelled_rows(inputs: Inputs) -> list[tuple[Answer, Label | None]]:
    """Rows shaped like lmms-lab/POPE carry their own label in `answer`."""
    pairs: list[tuple[Answer, Label | None]] = []
    keys: list[tuple[Hashable, SourcedRow]] = []
    for sourced in read_scored(*inputs.answers):
        if "category" not in sourced.row or not {"answer", "label"} & set(sourced.row):
            raise InputError(
                f"{sourced.where}: without `annotations` a row must carry 'category', 'answer' (yes or no) and "
                "'prediction', as lmms-lab/POPE's do; LLaVA's files need "
                "`annotations`, the folder with coco_pope_<category>.json, and `questions`."
            )
        category = _category(sourced)
        key = _row_key(sourced.row, category) or (category, identity_of(sourced, "question_id", "id"))
        image = _image_name(sourced.row) or str(key)
        keys.append((key, sourced))
        pairs.append(
            (
                Answer(sourced, category, key),
                Label(key, image, _is_positive(sourced, inputs.official, "answer", "label")),
            )
        )
    if not inputs.official:
        check_join(inputs, dict(keys), keys)
    return pairs


def _from_label_files(inputs: Inputs, folder: Path) -> list[tuple[Answer, Label | None]]:
    labels = _labels(folder, inputs.official)
    answers = _answers(inputs)
    without = sorted({answer.category for answer in answers} - set(labels))
    if without and not inputs.official:
        raise InputError(
            f"{folder}: there is no {PREFIX}{without[0]}{SUFFIX} for the answers of category '{without[0]}'; "
            f"the folder has: {', '.join(sorted(labels))}."
        )
    pairs: list[tuple[Answer, Label | None]] = []
    for category, lines in labels.items():
        chosen = [answer for answer in answers if answer.category == category]
        if inputs.official:
            if not chosen:
                raise InputError(
                    f"{names_of(inputs.answers)}: no answer is of category '{category}'; the official "
                    "program divides by zero there. Leave its label file out of the folder."
                )
            pairs += list(zip(chosen, [*lines, *[None] * len(chosen)], strict=False))
        else:
            pairs += _join(inputs, category, chosen, lines)
    order = {id(answer): n for n, answer in enumerate(answers)}
    return sorted(pairs, key=lambda pair: order[id(pair[0])])


def _join(
    inputs: Inputs, category: str, answers: Sequence[Answer], lines: Sequence[Label]
) -> list[tuple[Answer, Label | None]]:
    """Answers and labels of one category: by image and question where both files carry them, else by position."""
    keyed = {label.key: label for label in lines}
    if all(answer.key is not None for answer in answers) and all(label.image for label in lines):
        check_join(inputs, [label.key for label in lines], [(a.key, a.sourced) for a in answers])
        return [(answer, keyed[answer.key]) for answer in answers]
    if len(answers) != len(lines):
        raise InputError(
            f"{names_of(inputs.answers)}: category '{category}' has {len(answers)} answers, but its label file has "
            f"{len(lines)} lines: pairing them by position would shift them. Answers to LLaVA's 8910 questions need "
            "the label files of POPE's commit e3e3926, whose random set has 2910 lines."
        )
    return list(zip(answers, lines, strict=True))


def _is_positive(sourced: SourcedRow, official: bool, *names: str) -> bool:
    """Whether the label is yes; the official program takes everything but "no" for it."""
    label = field_of(sourced, *names)
    if not official and label not in ("yes", "no"):
        raise InputError(f"{sourced.where}: the label must be yes or no, but is {short(label, 60)}.")
    return bool(label != "no")


def _labels(folder: Path, official: bool) -> dict[str, list[Label]]:
    paths = sorted(folder.glob(f"{PREFIX}*{SUFFIX}")) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder}: this is not a folder with {PREFIX}<category>{SUFFIX} files.")
    labels = {}
    for path in sorted(paths, key=lambda path: _order(path.name)):
        category = path.name[len(PREFIX) : -len(SUFFIX)]
        labels[category] = [
            Label(
                _row_key(sourced.row, category) or (category, sourced.where),
                _image_name(sourced.row) if _question(sourced.row) else "",
                _is_positive(sourced, official, "label"),
            )
            for sourced in read_scored(path)
        ]
    return labels


def _answers(inputs: Inputs) -> list[Answer]:
    """The answers with their category; in the order of the question file, unless `official` asks for the file's own."""
    answer_rows = read_scored(*inputs.answers)
    if not inputs.questions:
        return [_answer(sourced, sourced) for sourced in answer_rows]
    questions = by_key(read_scored(*inputs.questions), _identity, inputs.official)
    given = [(_identity(sourced), sourced) for sourced in answer_rows]
    if inputs.official:
        check_known(inputs, questions, given)
    else:
        check_join(inputs, questions, given)
        place = {key: n for n, key in enumerate(questions)}
        answer_rows.sort(key=lambda sourced: place[sourced.row["question_id"]])
    return [_answer(sourced, questions[sourced.row["question_id"]]) for sourced in answer_rows]


def _identity(sourced: SourcedRow) -> str | int:
    return identity_of(sourced, "question_id")


def _answer(sourced: SourcedRow, question: SourcedRow) -> Answer:
    category = _category(question)
    key = _row_key(question.row, category)
    if key is None and "prediction" in sourced.row:  # else the row's `text` is the answer, not the question
        key = _row_key(sourced.row, category)
    return Answer(sourced, category, key)


def _category(sourced: SourcedRow) -> str:
    category = field_of(sourced, "category")
    if not isinstance(category, str):
        raise InputError(f"{sourced.where}: 'category' must be text, but is {short(category)}.")
    return category


def _row_key(row: Row, category: str) -> Hashable | None:
    image, question = _image_name(row), _question(row)
    return (category, image, question) if image and question else None


def _image_name(row: Row) -> str:
    """The image's name without folder and ending: label files write x.jpg, lmms-lab/POPE writes x."""
    for name in ("image_source", "image"):
        if isinstance(row.get(name), str):
            return PurePosixPath(row[name]).name.removesuffix(".jpg")
    return ""


def _question(row: Row) -> str:
    """The bare question; "imange" is a slip in the label files that other copies have mended."""
    text = row["question"] if isinstance(row.get("question"), str) else row.get("text")
    return text.removesuffix(INSTRUCTION).strip().replace("imange", "image") if isinstance(text, str) else ""


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """The question with LLaVA's instruction, which lmms-lab/POPE's rows lack and LLaVA's have."""
    text = row["question"] if isinstance(row.get("question"), str) else row.get("text")
    if not isinstance(text, str):
        raise InputError(f"POPE question {short(row.get('question_id'))}: there is no 'question' and no 'text'.")
    image = row.get("image")
    if isinstance(image, dict):
        image = image.get("bytes")
    if not isinstance(image, str | bytes):
        raise InputError(f"POPE question {short(row.get('question_id'))}: 'image' is neither a path nor an image.")
    question = text.removesuffix(f"\n{INSTRUCTION}")
    return Prompt(f"{question}\n{INSTRUCTION}", question, (image,), _image_name(row) or row.get("question_id"), 128)


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Questions from one file, or from a folder of parquet files or of coco_pope_<category>.json files.

    Of a clone of lmms-lab/POPE the 9000 rows in data/ are read, or those in Full/, which are the same.
    """
    if not path.is_dir():
        return read_scored(path)
    rows: list[SourcedRow] = []
    for folder in (path, path / "data", path / "Full"):
        rows = read_scored(*sorted(folder.glob("*.parquet")))
        if rows:
            return rows
    for file in sorted(path.glob(f"{PREFIX}*{SUFFIX}"), key=lambda file: _order(file.name)):
        category = file.name[len(PREFIX) : -len(SUFFIX)]
        rows += [SourcedRow(where, {**row, "category": category}) for where, row in read_scored(file)]
    if not rows:
        raise InputError(f"{path}: the folder holds neither parquet files nor {PREFIX}<category>{SUFFIX} files.")
    return rows


def looks_like(row: Row) -> bool:
    """Rows of POPE: one of its categories, its form of question, or a number for id with Yes or No for answer."""
    texts = [row[name] for name in ("question", "prompt", "text") if isinstance(row.get(name), str)]
    return (
        row.get("category") in CATEGORIES
        or any(text.startswith(("Is there a ", "Is there an ")) for text in texts)
        or (isinstance(row.get("question_id"), int) and any(text.startswith(("Yes", "No")) for text in texts))
    )


BENCHMARK = Benchmark(
    "pope",
    "POPE",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "mean_f1", mean_f1, ("annotations", "questions")),
    images=("val2014", "images", ""),
    hub_id="lmms-lab/POPE",
)
