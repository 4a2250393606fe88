"""The official scoring rules written a second time, slow and obvious: character by character, no regular expression."""

import itertools


def scienceqa_letter(text: str) -> str:
    for letter in "ABCDE":
        if text == letter:
            return letter
    for letter in "ABCDE":
        if text.startswith(letter + ". "):
            return letter
    found = []
    place = 0
    head = "The answer is "
    while place < len(text):
        letter = text[place + len(head) : place + len(head) + 1]
        wildcard = text[place + len(head) + 1 : place + len(head) + 2]
        if text[place:].startswith(head) and "A" <= letter <= "Z" and wildcard not in ("", "\n"):
            found.append(letter)
            place += len(head) + 2  # what a match has taken, its last character too, cannot begin another
        else:
            place += 1
    return found[0] if len(found) == 1 else "FAILED"


def pope_word(text: str) -> str:
    sentence = ""
    for character in text:
        if character == ".":
            break
        if character != ",":
            sentence += character
    word, words = "", []
    for character in sentence + " ":
        if character == " ":
            words.append(word)
            word = ""
        else:
            word += character
    return "no" if "No" in words or "no" in words or "not" in words else "yes"


def vqa_normal_form(text: str, contractions: dict[str, str]) -> str:
    text = text.lower()
    text = "".join(c for c in text if c not in ",?")
    text = text.replace("'s", " 's").strip()
    text = "".join(" " if c in "\n\t" else c for c in text).strip()
    before = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        near_space = False
        for left, right in itertools.pairwise(before):
            near_space |= (left, right) in ((mark, " "), (" ", mark))
        text = "".join(c if c != mark else "" if near_space else " " for c in text)
    kept, removed = "", 0
    for place, character in enumerate(text):
        digit_follows = text[place + 1 : place + 2].isdecimal()
        if character == "." and not digit_follows and removed < 32:
            removed += 1
        else:
            kept += character
    numbers = {
        "none": "0",
        "zero": "0",
        "one": "1",
        "two": "2",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "eight": "8",
        "nine": "9",
        "ten": "10",
    }
    words = []
    for word in kept.split():
        number = numbers.get(word, word)
        if number not in ("a", "an", "the"):
            words.append(contractions.get(number, number))
    return " ".join(words)


def vqa_score(prediction: str, humans: list[str]) -> float:
    """Both already normalised."""
    shares = []
    for left_out in range(10):
        matches = sum(1 for place, human in enumerate(humans) if place != left_out and human == prediction)
        shares.append(min(1.0, matches / 3))
    return round(sum(shares) / 10, 9) if prediction in humans else 0.0


def textvqa_question(prompt: str) -> str | None:
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        for start in range(len(prompt)):
            if prompt[start:].startswith("Question: "):
                rest = prompt[start + len("Question: ") :]
                return rest.split(" Short answer:")[0].lower() if " Short answer:" in rest else None
        return None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return (lines[1] if lines[0].startswith("Reference OCR token:") else lines[0]).lower()
    return lines[0].lower() if len(lines) == 2 else None


def yes_no(text: str) -> str:
    word, words = "", []
    for character in text.lower() + " ":
        if character.isalnum() or character == "_":
            word += character
        elif word:
            words.append(word)
            word = ""
    if words and words[0] in ("yes", "no"):
        return words[0]
    yes, no = "yes" in words, "no" in words
    return "yes" if yes and not no else "no" if no and not yes else "unclear"


def mmmu_letter(response: str, options: list[str]) -> str | None:
    letters = ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"[n] for n in range(len(options))]
    if "Answer:" in response:
        tail = response.split("Answer:")[-1]
        named = [letter for letter in letters if letter in tail]
        if len(named) == 1:
            return named[0]
    for mark in [",", ".", "!", "?", ";", ":", "'"]:
        while response[:1] == mark:
            response = response[1:]
        while response[-1:] == mark:
            response = response[:-1]
    response = " " + response + " "

    def last(part: str) -> int:
        return max([n for n in range(len(response) + 1) if response[n:].startswith(part)], default=-1)

    bracketed = [letter for letter in letters if last(f"({letter})") >= 0]
    if bracketed:
        return sorted(bracketed, key=lambda letter: last(f"({letter})"))[-1]
    candidates = [x for x in letters if last(f"{x} ") >= 0] or [x for x in letters if last(f"{x}.") >= 0]
    if candidates:
        best = max(last(f" {letter} ") for letter in candidates)
        return next(letter for letter in candidates if last(f" {letter} ") == best)
    if len(response.split()) <= 5:
        return None
    response = response.lower()
    places = [(last(option.lower()), -n) for n, option in enumerate(options)]
    best_place, minus_n = max(places)
    return letters[-minus_n] if best_place >= 0 else None


def crpe_groups(rights: list[bool]) -> list[bool]:
    return [rights[n] and rights[n + 1] and rights[n + 2] and rights[n + 3] for n in range(0, len(rights), 4)]
