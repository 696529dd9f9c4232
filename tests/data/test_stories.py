"""The stories are varied, the same every time, and judged by the grammar that wrote them."""

import re
from itertools import islice
from string import Formatter
from time import process_time

import pytest

from homespun.data.stories import GRAMMAR, Score, entropy, parses, score, sentences, stories


def test_a_story_depends_on_seed_and_index_only() -> None:
    assert list(stories(10, seed=3))[:5] == list(stories(5, seed=3)) == list(islice(stories(10**9, seed=3), 5))
    assert list(stories(5, seed=3)) != list(stories(5, seed=4))


def test_the_first_story_is_pinned() -> None:
    """A changed grammar changes every run made with it: do it on purpose, and pin the new one."""
    assert next(stories(1)) == FIRST


def test_ten_thousand_stories_are_all_different_and_other_seeds_hold_out() -> None:
    training = set(stories(10_000))
    assert len(training) == 10_000
    assert training.isdisjoint(stories(2_000, seed=1))
    assert training.isdisjoint(islice(stories(12_000), 10_000, None))


def test_a_story_carries_fifty_bits_in_a_few_hundred_letters() -> None:
    assert 50 < entropy(2_000) < 70
    told = list(stories(2_000))
    assert 480 < sum(map(len, told)) / len(told) < 600
    assert all(300 < len(story) < 900 for story in told)
    assert all(6 <= len(sentences(story)) <= 20 for story in told)


def test_every_sentence_of_every_story_parses() -> None:
    for story in stories(500, seed=5):
        assert [sentence for sentence in sentences(story) if not parses(sentence)] == []


def test_every_template_is_reached_and_recognised() -> None:
    """Fill each sentence of the grammar with the first and the last words of every variable: all of them parse."""
    written = {part for rule in GRAMMAR.rules.values() for parts in rule for part in parts if part[0] not in "<¶"}
    for choice in (0, -1):
        words = {slot: text for entries in GRAMMAR.variables.values() for slot, text in entries[choice].items()}
        for text in written:
            filled = text.format_map(words)
            assert score(filled, complete=False).fraction == 1.0, filled
            assert len(sentences(filled)) == len(sentences(text)), text


def test_rules_and_variables_are_all_used_and_all_there() -> None:
    parts = [part for rule in GRAMMAR.rules.values() for alternative in rule for part in alternative]
    called = {part[1:-1] for part in parts if part[0] == "<"}
    slots = {slot for part in parts if part[0] != "<" for _, slot, _, _ in Formatter().parse(part) if slot}
    assert called == set(GRAMMAR.rules) - {"story"}
    assert {GRAMMAR.variable_of[slot] for slot in slots} == set(GRAMMAR.variables)
    for entries in GRAMMAR.variables.values():
        assert len({frozenset(entry) for entry in entries}) == 1


def test_one_hero_one_toy_and_the_right_pronouns_go_through_a_story() -> None:
    """Names other than the hero's and the friend's never appear; without a man in it a girl's story has no 'he'."""
    heroes = {entry["hero"]: entry["he"] for entry in GRAMMAR.variables["hero"]}
    friends = {entry["friend"]: entry["friend_he"] for entry in GRAMMAR.variables["friend"]}
    relatives = {entry["relative"]: entry["relative_he"] for entry in GRAMMAR.variables["relative"]}
    toys = {entry["toy"] for entry in GRAMMAR.variables["toy"]}
    for story in stories(500, seed=8):
        words = set(re.findall(r"[A-Za-z]+", story))
        assert len(words & heroes.keys()) == 1
        assert len(words & friends.keys()) <= 1
        assert len(words & relatives.keys() - {"mother"}) <= 1  # the mother of a little animal
        if not re.search("row a boat|paper boat|play the drum", story):
            assert len(words & toys) <= 1
        people = [pronoun for names in (heroes, friends, relatives) for name, pronoun in names.items() if name in words]
        if set(people) == {"she"}:
            assert not words & {"he", "He", "him", "his", "His"}
        if set(people) == {"he"} and "mother" not in words:
            assert not words & {"she", "She", "her", "Her"}


GOOD = "Once upon a time, there was an honest girl named Lily."


@pytest.mark.parametrize(
    "sentence",
    [
        GOOD,
        "Lily was glad to have her red ball again.",
        '"Why are you so sad?" asked the owl.',
        "He was hungry and wanted to eat his apple.",
        "His mother was so glad that she began to cry.",
        "Kate was so happy that she gave Tom a big hug.",
    ],
)
def test_good_sentences_parse(sentence: str) -> None:
    assert parses(sentence)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("wrong article", "Once upon a time, there was a honest girl named Lily."),
        ("wrong article", "Once upon a time, there was an kind girl named Lily."),
        ("wrong child", "Once upon a time, there was an honest boy named Lily."),
        ("wrong pronoun", "Lily was glad to have his red ball again."),
        ("wrong pronoun", "He was hungry and wanted to eat her apple."),
        ("wrong pronoun", "His mother was so glad that he began to cry."),
        ("wrong pronoun", "Kate was so happy that he gave Tom a big hug."),
        ("swapped words", "Once upon a time, was there an honest girl named Lily."),
        ("doubled word", "Once upon a time, there was was an honest girl named Lily."),
        ("doubled name", "From that day on, Tom and Tom were best friends."),
        ("missing word", "Once upon a time, there was an honest girl Lily."),
        ("cut off", "Once upon a time, there was an honest girl na"),
        ("cut off", "Once upon a time, there was an honest girl named Lily"),
        ("cut off", ""),
        ("run on", GOOD + " " + GOOD),
        ("wrong case", "once upon a time, there was an honest girl named Lily."),
        ("wrong spacing", "Once upon a time,  there was an honest girl named Lily."),
        ("wrong tense", "Lily is glad to have her red ball again."),
        ("open quote", '"Why are you so sad? asked the owl.'),
        ("unknown word", '"Why are you so purple?" asked the owl.'),
        ("unfilled slot", "Once upon a time, there was {a_trait} {boy} named {hero}."),
        ("random words", "Ball the under friend very a."),
        ("gibberish", 'He was no, a race in the seed, and he felt thankful that he was so proud of her hands."'),
        ("gibberish", '"Thank you so glad that the way home together," said her a big hug.'),
        ("gibberish", "Ther onc wase a litt girlne Lil."),
        ("good English of others", "The quick brown fox jumps over the lazy dog."),
    ],
)
def test_bad_sentences_do_not_parse(fault: str, sentence: str) -> None:
    assert not parses(sentence), fault


def test_disturbed_sentences_rarely_parse() -> None:
    """Swap two neighbouring words, double one, or leave one out: what comes out is hardly ever in the grammar."""
    disturbed = []
    for sentence in sentences(" ".join(stories(200, seed=9))):
        words = sentence.split(" ")
        for at in range(len(words) - 1):
            before, this, following, after = words[:at], words[at], words[at + 1], words[at + 2 :]
            disturbed.append([*before, this, this, following, *after])
            disturbed.append([*before, following, *after])
            if this != following:
                disturbed.append([*before, following, this, *after])
    accepted = [text for text in map(" ".join, disturbed[::23]) if parses(text)]
    assert len(accepted) / len(disturbed[::23]) < 0.02, accepted[:10]


def test_sentences_end_outside_quotes_only() -> None:
    text = (
        'Tom ran. "Why?" asked the owl. "Wait! It is me," said Tom. "I know."\n\n'
        'He smiled and said, "Thank you!" "Oh no!" cried Tom.'
    )
    assert sentences(text) == [
        "Tom ran.",
        '"Why?" asked the owl.',
        '"Wait! It is me," said Tom.',
        '"I know."',
        'He smiled and said, "Thank you!"',
        '"Oh no!" cried Tom.',
    ]
    assert sentences("") == sentences(" \n\n ") == []


def test_sentences_lose_only_white_space() -> None:
    for text in [*stories(100), 'an "open. quote. Here', 'a." b." C. "', "...!!! Oh. oh? Oh"]:
        assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("cut", ["Tom was very", '"I will help you.', '"I know," said', 'Tom said, "Wait! Do not'])
def test_a_last_sentence_that_was_cut_off_is_left_out(cut: str) -> None:
    assert score(f"Tom was very sad. {cut}") == Score(total=1, parsed=1)
    assert score(f"Tom was very sad. {cut}", complete=False).total == 2


def test_score_counts_and_adds() -> None:
    mixed = score("Tom was very sad. Tom sad was very. He liked to sing when the sun came up.")
    assert mixed == Score(total=3, parsed=2) and mixed.fraction == pytest.approx(2 / 3)
    assert mixed + Score(1, 1) == Score(4, 3)
    assert score("") == Score(0, 0) and Score(0, 0).fraction == 0.0


def test_judging_a_sentence_is_cheap() -> None:
    """A ratio of two times on one machine: judging a wrong sentence costs at most as much as making 100 stories."""
    start = process_time()
    list(stories(2_000))
    making = (process_time() - start) / 2_000
    wrong = sentences(" ".join(stories(50)))
    start = process_time()
    for sentence in wrong:
        parses(sentence[:-1])
    assert (process_time() - start) / len(wrong) < 100 * making


FIRST = (
    "Once upon a time, a funny boy named Peter lived in a small house near the forest. Everyone in the "
    'forest loved him. Soon it was the birthday of his mother. "What can I give?" asked Peter, and he '
    'felt unhappy. Then his friend Adam said, "You can make an orange cake." Peter worked very hard, and '
    "at last the orange cake was ready.\n\n"
    '"This is for you," said Peter and gave his mother the orange cake. "This is the best gift of all," '
    "said his mother. Peter was happy all day long."
)
