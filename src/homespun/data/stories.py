"""The built-in corpus: small children's stories from a grammar, and the same grammar as a judge of what a model wrote.

Story i of a seed depends on nothing else, so any number of stories is a prefix of any larger number. The rules (twelve
plots and their sentences) stand in stories.txt, the words that fill them stand here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from homespun.data.grammar import Entry, Grammar, sentences

__all__ = ["Score", "entropy", "parses", "score", "sentences", "stories"]


@dataclass(frozen=True)
class Score:
    """How many sentences of a text the grammar can write: `parsed` of `total`."""

    total: int
    parsed: int

    @property
    def fraction(self) -> float:
        """The share of the sentences that parse, 0 for a text without sentences."""
        return self.parsed / self.total if self.total else 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.total + other.total, self.parsed + other.parsed)


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories; story i is a pure function of (seed, i)."""
    for index in range(count):
        text, words, _ = GRAMMAR.draw(Random(f"{seed}:{index}").random)
        yield text.format_map(words)


def parses(sentence: str) -> bool:
    """Whether the grammar can write exactly this sentence, with its spelling, agreement and punctuation."""
    return GRAMMAR.parses(sentence)


def score(text: str, complete: bool = True) -> Score:
    """Count the sentences of a text that parse; `complete` leaves out a last one that was cut off."""
    found = sentences(text, complete)
    return Score(len(found), sum(map(parses, found)))


def entropy(count: int = 1000, seed: int = 0) -> float:
    """Estimate the bits in one story from `count` of them: a floor for the loss of any model of these stories.

    Counts the choices that show in the text. Two series of choices that give the same story are rare, so the true
    entropy is at most this and very near it.
    """
    total = 0.0
    for index in range(count):
        text, _, bits = GRAMMAR.draw(Random(f"{seed}:{index}").random)
        total += bits + GRAMMAR.bits_of_slots(text)
    return total / count


def article(word: str) -> str:
    """The word with its indefinite article: `a fox`, `an owl`, `an honest`."""
    return f"{'an' if word[0] in 'aeiou' or word.startswith('honest') else 'a'} {word}"


def phrases(slot: str, text: str, **patterns: str) -> list[Entry]:
    """Entries from words set apart by commas: each fills `slot`, and `{}` in the pattern of any other slot."""
    words = [word.strip() for word in text.split(",")]
    return [{slot: word, **{name: form.format(word) for name, form in patterns.items()}} for word in words]


def things(slot: str, text: str) -> list[Entry]:
    """Entries with the forms `slot`, `a_slot` and `A_slot`; a word written `some x` takes no other article."""
    entries: list[Entry] = []
    for word in phrases("word", text):
        bare = word["word"].removeprefix("some ")
        phrase = article(bare) if bare == word["word"] else word["word"]
        entries.append({slot: bare, f"a_{slot}": phrase, f"A_{slot}": phrase[0].upper() + phrase[1:]})
    return entries


MALE = {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His", "himself": "himself", "own": "his"}
FEMALE = {"he": "she", "He": "She", "him": "her", "his": "her", "His": "Her", "himself": "herself", "own": "hers"}


def people(slot: str, prefix: str, male: str, female: str) -> list[Entry]:
    """Entries of persons: `slot` is the name, and the pronouns `he`, `him`, `his`... follow it, named with `prefix`."""
    return [
        {slot: name, **{prefix + pronoun: word for pronoun, word in pronouns.items()}, prefix + "boy": child}
        for names, pronouns, child in ((male, MALE, "boy"), (female, FEMALE, "girl"))
        for name in names.split(", ")
    ]


VARIABLES: dict[str, list[Entry]] = {
    "hero": people(
        "hero",
        "",
        male="Tom, Ben, Max, Sam, Leo, Jack, Tim, Finn, Noah, Peter",
        female="Lily, Mia, Anna, Emma, Sara, Lucy, Ella, Rose, Nora, Amy",
    ),
    "friend": people(  # no name in common with the heroes: nobody is their own friend
        "friend",
        "friend_",
        male="Bob, Adam, Luke, Jim, Paul, Oscar",
        female="Kate, Molly, Jane, Ruby, Sue, Alice",
    ),
    "relative": people(
        "relative",
        "relative_",
        male="father, grandfather, uncle, brother",
        female="mother, grandmother, aunt, sister",
    ),
    "trait": things("trait", "little, kind, happy, brave, clever, shy, quiet, gentle, funny, honest"),
    "home": things("home", "small house, white house, old house, little house"),
    "place": [
        *phrases("place", "park, beach, farm, lake, river, market", at_place="at the {}"),
        *phrases("place", "forest, garden, village, woods", at_place="in the {}"),
    ],
    "fine": phrases("fine", "sunny, warm, bright, windy, cool, lovely, quiet, fine, clear"),
    "morning": phrases("morning", "morning, day, afternoon"),
    "day": phrases("day", "morning, day, afternoon"),
    "toy": phrases("toy", "ball, kite, doll, drum, boat, truck, train, robot, car, plane, bell, wagon"),
    "colour": things("colour", "red, blue, green, yellow, orange, pink, white, shiny, new, old, pretty, small"),
    "animal": phrases("animal", "owl, fox, rabbit, bird, squirrel, turtle, frog, duck, cat, dog, mouse, bear"),
    "manner": things("manner", "kind, wise, old, friendly, gentle, clever, small, big, brown, grey"),
    "soft": phrases("soft", "soft, low, gentle, small, quiet"),
    "spot": phrases(
        "spot",
        "under a bench, behind a big rock, in the tall grass, next to an old tree, under some leaves, behind a wall,"
        "under a bush, near a little bridge",
    ),
    "high": phrases("high", "in a tall tree, on a tall house, up in an old tree, on a big rock"),
    "seat": phrases("seat", "on a rock, on the grass, on a bench, on the ground, under a tree"),
    "look": phrases("look", "by the water, behind the trees, under the leaves, in the flowers"),
    "farther": phrases("farther", "along the road, near the gate, up on the hill, next to the wall"),
    "chased": things("chased", "butterfly, bee, puppy, insect"),
    "sad": phrases("sad", "sad, upset, unhappy"),
    "glad": phrases("glad", "happy, glad, delighted, thankful"),
    "food": things("food", "apple, orange, pear, sandwich, cookie, pie, egg, some bread, some cheese, some cake"),
    "drink": phrases("drink", "juice, milk, tea, water"),
    "glue": phrases("glue", "glue, string, tape, paper"),
    "skill": phrases(
        "skill", "swim, ride a bike, climb trees, paint, sing, dance, play the drum, row a boat, draw a horse, read"
    ),
    "gift": things("gift", "card, paper boat, paper flower, basket, picture, apple pie, orange cake"),
    "plant": things("plant", "rose, lily, tulip, apple tree, pear tree, orange tree"),
    "found": things("found", "silver key, gold coin, ring, watch, old book, purse, umbrella"),
    "young": things("young", "kitten, puppy, little bird, duckling, lamb, little fox, owlet"),
    "trouble": phrases("trouble", "stuck in the mud, lost and cold, too weak to walk, all alone, caught in an old net"),
}


def rules() -> dict[str, list[str]]:
    """Read stories.txt: rule -> alternatives."""
    found: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("stories.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            found[line[2:]] = []
        elif line and not line.startswith("#"):
            found[next(reversed(found))].append(line)
    return found


GRAMMAR = Grammar(VARIABLES, rules(), "story")
