"""Small vocabularies of every trained kind, texts that are hard to keep, and what must hold for any tokenizer."""

from functools import cache

from hypothesis import strategies as st

from homespun.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from homespun.data.vocabulary import parse_tokenizer

TRAINED = ["bytes", "chars", "bpe:700", "wordpiece:900"]
SAMPLE = [
    f"{animal} number {number} don't {verb} the naïve café in 20{number};\r\n\tif x: return '{verb}ing'  # ok\n"
    for number in range(40)
    for animal, verb in [("Dog", "chase"), ("Elephant", "visit"), ("Żaba", "смотреть"), ("猫", "好き")]
]
HARD = [
    "",
    " ",
    "  two  spaces  ",
    "##! ##9 ⁀! ▁! ##",
    "\x00 NUL \x00\x00",
    "a\r\nb\rc\n\n\n  d\t\t",
    "👩‍👩‍👧‍👦 🏳️‍🌈 é é Z̷̛a",
    "<|endoftext|><|user|> and <|assistant|><|system|>",
    "⁀##▁Ġ<0x0A><0xE2><unk></s>[UNK]",
    "\ufeff\u2028\u2029\u00a0\u200b\u200d\u0085\ufffd\ufffe\U0010ffff",
    "日本語 안녕하세요 Привет مرحبا नमस्ते",
    "x" * 5000 + " " * 300 + "é" * 300 + "1" * 99,
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SPELLED = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|", " ", "\n", "the", "é", "⁀", "##", "<0x41>", "'s", "9"]), max_size=12
)
TEXTS = st.one_of(UNICODE, SPELLED.map("".join))


@cache
def trained(name: str) -> Tokenizer:
    return parse_tokenizer(name).build(SAMPLE, 10_000)[0]


def assert_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def assert_streams(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.decoder()
    pieces = [stream.push(number) for number in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
