"""Expands the question patterns of topics.toml. Pure: no model, no files but the ones it is given."""

import itertools
import random
import re
import tomllib
from pathlib import Path

OPENINGS = [
    "hi, ", "hello, ", "please, ", "tell me, ", "excuse me, ", "so, ", "and ", "now ", "one question: ", "ok, ",
    "i am new here. ", "i was wondering, ", "dear cocoon, ", "i read about it. ", "just curious: ", "say, ",
    "first of all, ", "my question is: ", "can you tell me ", "could you tell me ", "please tell me ",
    "do you know ", "i would like to know ",
    "i want to know ", "could you please explain ", "suppose i ask you: ",
]
ENDINGS = [" please", " exactly", " actually", " then", " in simple words", " in short", " for a beginner", " here",
           " in cocoon", " with you", " thanks", " now", " today", " by the way", " in detail",
           " my friend", " if you do not mind", " after all", " in this project", " at all", " again", " for me"]
# Words that carry no topic: put in at random so that the model looks at the others.
FILLERS = ("a about again all also am an and any anything are as at be been by call called can come could do exactly "
           "for from get given go good got had has have if in into is it its job just kind know let like made may me "
           "mean more my need new now of on one or order ought our out part people please possible quite really "
           "responsible see she should so some sort such suppose tell than that the their them then there these they "
           "thing things this those to too under use used very want was way we well were what when which while will "
           "wish with within would you your").split()
# How names are written when they are not written in lower case.
NAMES = {"cocoon": "Cocoon", "intel": "Intel", "tdx": "TDX", "ton": "TON", "gpu": "GPU", "gpus": "GPUs", "ai": "AI",
         "rtmr3": "RTMR3", "rtmr": "RTMR", "mrtd": "MRTD", "tls": "TLS", "amd": "AMD", "rust": "Rust", "snp": "SNP",
         "sev-snp": "SEV-SNP", "sev": "SEV", "pytorch": "PyTorch", "i": "I", "ip": "IP", "pid": "PID", "vm": "VM"}


def load(folder: Path) -> tuple[list[dict], list[dict]]:
    """The topics, with macros put in, and the held-out questions."""
    data = tomllib.loads((folder / "topics.toml").read_text())
    macro = lambda text: re.sub(r"<(\w+)>", lambda match: data["macros"][match[1]], text)
    for topic in data["topic"]:
        topic["questions"] = [macro(pattern) for pattern in topic["questions"]]
    return data["topic"], tomllib.loads((folder / "held-out.toml").read_text())["question"]


def parse(pattern: str) -> list:
    """A pattern as a list of parts: text, or a list of alternatives that are patterns again."""
    def sequence(position: int):
        parts, text = [], ""
        while position < len(pattern) and pattern[position] not in "|]":
            if pattern[position] == "[":
                alternatives, position = [], position + 1
                while True:
                    inner, position = sequence(position)
                    alternatives.append(inner)
                    position += 1
                    if pattern[position - 1] == "]":
                        break
                parts += [text, alternatives]
                text = ""
            else:
                text += pattern[position]
                position += 1
        return parts + [text], position

    parts, end = sequence(0)
    assert end == len(pattern), f"unbalanced brackets in {pattern!r}"
    return parts


def expand(parts: list) -> list[str]:
    """Every question of a parsed pattern."""
    choices = [[part] if isinstance(part, str) else [text for inner in part for text in expand(inner)]
               for part in parts]
    return [tidy("".join(choice)) for choice in itertools.product(*choices)]


def pick(parts: list, rng: random.Random) -> str:
    """One question of a parsed pattern."""
    return tidy("".join(part if isinstance(part, str) else pick(rng.choice(part), rng) for part in parts))


def tidy(text: str) -> str:
    return " ".join(text.split())


def normal(text: str) -> str:
    """A question without what does not tell it from another: capitals, punctuation, openings and endings."""
    strip = lambda words: tidy(re.sub(r"[^a-z0-9]+", " ", words.lower()))
    text, before = strip(text), None
    while text != before:
        before = text
        for opening in OPENINGS:
            text = text.removeprefix(strip(opening) + " ")
        for ending in ENDINGS:
            text = text.removesuffix(" " + strip(ending))
    return text


def vary(text: str, rng: random.Random) -> str:
    """A question the way somebody might type it."""
    words = text.split()
    if rng.random() < 0.5 and len(words) > 2:
        words = noise(words, rng)
    text = " ".join(words)
    if rng.random() < 0.3:
        text = rng.choice(OPENINGS) + text
    if rng.random() < 0.15:
        text += rng.choice(ENDINGS)
    if rng.random() < 0.8:
        text = re.sub(r"[\w-]+", lambda match: NAMES.get(match[0], match[0]), text)
    if rng.random() < 0.75:
        text = text[:1].upper() + text[1:]
    return text + rng.choices(["?", "", ".", "!", " ?"], [70, 20, 6, 2, 2])[0]


def noise(words: list[str], rng: random.Random) -> list[str]:
    """Drops words that carry no topic and puts in others."""
    out = []
    for word in words:
        if rng.random() < 0.2:
            out.append(rng.choice(FILLERS))
        if not (word in FILLERS and rng.random() < 0.25):
            out.append(word)
    return out
