"""Make the word lists and the clues of gem/envs/game_env/data/ from two Debian packages.

    apt-get download scowl wordnet-base
    for package in *.deb; do dpkg-deb -x $package debian; done
    python ci/build_words.py debian

Sources: SCOWL grades English words by how common they are (10, 20, 35, ... 95); WordNet knows what they mean, and
how often each meaning occurs in a tagged corpus.

accepted/N.txt  Every word of N letters up to SCOWL's level 70, in all spellings. Guesses; secrets of hardcore games.
common/N.txt    Words of N letters up to level 35 in American spelling that the tagged corpus has as a base form (no
                plurals, no past tenses, no abbreviations). Secrets. Some of three letters are left out: see `winnable`.
clues-*.txt     Words, each with the gloss of its most frequent sense, shortened: `easy` up to level 20, `hard` above.

Words with a sense that WordNet calls obscene or a slur are left out everywhere, and so are those of BLOCKED.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gem.testing.solvers import hangman

DATA = Path(__file__).parent.parent / "gem" / "envs" / "game_env" / "data"
COMMON_LENGTHS = range(3, 13)
ACCEPTED_LENGTHS = range(3, 10)
LEVELS = (10, 20, 35, 40, 50, 55, 60, 70)
COMMON_LEVEL = 35
EASY_LEVEL = 20
SPELLINGS = ("american", "british", "british_z", "canadian", "australian", "variant_1")
POS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}

RUDE = re.compile(
    r"obscen|vulgar|ethnic slur|disparag|derogat|offensive (term|name|word)|insulting|sexual|coitus|copulat|prostitut"
    r"|genital|masturbat|excrement|feces|fecal|urinat|\bbreasts?\b|buttocks|\bpenis|\bvagina|homosexual|intercourse"
)
SLUR = re.compile(r"obscene|vulgar|slur\b|disparaging|offensive (term|name|word)")
BLOCKED = """
anal anus arse ass bastard bitch bosom breast bugger bum butt clit cock coon crap cum cunt dago damn dick dike dyke
fag faggot fanny fart fuck fucking gay gook hell homo hooker hymen incest jap jerk jew kike kinky kraut lesbian libido
lust merde molest naked negro nigga nigger nipple nude orgasm orgy paki pap pimp piss poof poop porn pube pussy
quadroon queer rape raper rapist rectum retard scrotum semen sex sexual sexy shag shit sissy slag slut sod spastic
spic squaw suicide tit tranny turd twat virgin wank wetback whore wog wop yid
"""
ENDINGS = ("", "s", "es", "ed", "d", "ing", "er", "ers", "y", "ier", "iest", "hole", "holes", "head", "heads")

Gloss = tuple[int, str, str]
"""How often the sense occurs, its part of speech, its gloss."""


def main() -> None:
    root = Path(sys.argv[1])
    scowl, wordnet = Scowl(root / "usr/share/dict/scowl"), WordNet(root / "usr/share/wordnet")
    rude = {word + ending for word in (*BLOCKED.split(), *wordnet.rude()) for ending in ENDINGS}

    common = {
        word: level
        for level in LEVELS
        if level <= COMMON_LEVEL
        for word in sorted(scowl.words(["english", "american"], level) - rude)
        if wordnet.counts[word]
    }
    for length in COMMON_LENGTHS:
        chosen = sorted(word for word in common if len(word) == length)
        write(f"common/{length}.txt", winnable(chosen, turns=10) if length == 3 else chosen)
    accepted = set().union(*(scowl.words(["english", *SPELLINGS], level) for level in LEVELS)) - rude | set(common)
    for length in ACCEPTED_LENGTHS:
        write(f"accepted/{length}.txt", sorted(word for word in accepted if len(word) == length))

    easy, hard = {}, {}
    for word, clue in clues(common, wordnet).items():
        if common[word] <= EASY_LEVEL and len(word) <= 7:
            easy[word] = clue
        elif common[word] > EASY_LEVEL and len(word) >= 4:
            hard[word] = clue
    for name, group in (("easy", easy), ("hard", hard)):
        write(f"clues-{name}.txt", (f"{word}\t{clue}" for word, clue in sorted(group.items())))


class Scowl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def words(self, spellings: Iterable[str], level: int) -> set[str]:
        """The words that come with this level, in lower case and without apostrophes or accents."""
        found: set[str] = set()
        for spelling in spellings:
            path = self.folder / f"{spelling}-words.{level}"
            if path.exists():
                found.update(re.findall(r"(?m)^[a-z]+$", path.read_text(encoding="utf-8")))
        return found


class WordNet:
    def __init__(self, folder: Path) -> None:
        self.glosses: dict[str, list[Gloss]] = {}
        """By word, one a sense."""
        counts = self._counts(folder)
        for pos in ("noun", "verb", "adj", "adv"):
            texts = dict(self._synsets(folder / f"data.{pos}"))
            for line in (folder / f"index.{pos}").read_text(encoding="latin-1").splitlines():
                if not re.match(r"[a-z]+ ", line):
                    continue
                word, _, senses, pointers, *rest = line.split()
                for number, offset in enumerate(rest[int(pointers) + 2 :], start=1):
                    gloss = counts[word, pos, number], pos, texts[offset]
                    self.glosses.setdefault(word, []).append(gloss)
                assert len(rest) == int(pointers) + 2 + int(senses)
        self.counts = Counter({word: sum(g[0] for g in glosses) for word, glosses in self.glosses.items()})

    def rude(self) -> Iterator[str]:
        """Words with a sense that is marked as rude and not vanishingly rare."""
        for word, glosses in self.glosses.items():
            for count, _, gloss in glosses:
                share = count / max(1, self.counts[word])
                if (SLUR.search(gloss) and (share > 0.1 or not self.counts[word])) or (
                    RUDE.search(gloss) and share > 0.5
                ):
                    yield word

    @staticmethod
    def _counts(folder: Path) -> Counter[tuple[str, str, int]]:
        counts: Counter[tuple[str, str, int]] = Counter()
        for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
            key, number, count = line.split()
            word, rest = key.split("%")
            counts[word, POS[rest[0]], int(number)] += int(count)
        return counts

    @staticmethod
    def _synsets(path: Path) -> Iterator[tuple[str, str]]:
        for line in path.read_text(encoding="latin-1").splitlines():
            if line[:8].isdigit():
                yield line[:8], line.partition(" | ")[2].strip()


def winnable(words: list[str], turns: int) -> list[str]:
    """Leave out words until Hangman's solver finds each of the others within the turns.

    Families such as bat, cat, fat, hat ... take more guesses than there are turns, whoever plays.
    """
    while lost := {word for word in words if not hangman.wins(word, words, turns)}:
        words = [word for word in words if word not in lost]
    return words


def clues(common: Iterable[str], wordnet: WordNet) -> dict[str, str]:
    """The gloss of the most frequent sense of each word for which it makes a clue, and of no other word."""
    found = {}
    for word in common:
        count, pos, gloss = max(wordnet.glosses[word], key=lambda g: g[0])
        text = re.sub(r"\s*\([^)]*\)\s*", " ", gloss.split(";")[0]).strip(" :,")
        text = re.sub(r"\s+", " ", text)
        plain = re.fullmatch(r"[A-Za-z][A-Za-z ,'-]*", text)
        short = 12 <= len(text) <= 75 and len(text.split()) > 1
        dominant = count >= 2 and count * 2 >= wordnet.counts[word]  # else the reader would think of another sense
        named = re.search(r"\b(used|same as|relating to|pertaining to|the act of)\b", text)
        told = any(related(word, other) for other in text.lower().split())
        if pos != "adv" and plain and short and dominant and not (told or named or RUDE.search(text)):
            found[word] = text
    unique = Counter(found.values())
    return {word: text for word, text in found.items() if unique[text] == 1 and 3 <= len(word) <= 9}


def related(word: str, other: str) -> bool:
    """Whether a word of the clue gives the word away: they share a stem, or one is in the other."""
    other = other.strip(",'-")
    shared = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    return shared >= max(3, len(word) - 3) or word in other or (len(other) >= 4 and other in word)


def write(name: str, lines: Iterable[str]) -> None:
    path = DATA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="ascii")
    print(f"{name}: {len(text.splitlines())} lines, {len(text)} bytes")


if __name__ == "__main__":
    main()
