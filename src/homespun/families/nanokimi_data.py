"""What nanoKimi's document promises beside the model: its data, and its measurements. B rows, T tokens."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homespun.data import corpus
from homespun.data.batches import IGNORED, Batch
from homespun.data.formats import KNOWN, suffixes
from homespun.data.vocabulary import Bpe, Gpt2, Vocabulary, parse_tokenizer
from homespun.errors import ConfigError, DataError
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.objectives.metrics import perplexity
from homespun.objectives.next_token import NextToken

GPT2_TOKENS = 50257


@dataclass(frozen=True)
class DataConfig:
    """How text becomes tokens.

    `tokenizer_name`: `gpt2`, or any vocabulary of Homespun such as `bpe:4096`. `vocabulary`: the folder of GPT-2's
    vocabulary files; without it `gpt2` means a vocabulary of as many tokens that is learned from the training text,
    and a warning says so. `block_size`: tokens of one item. `data_dir`: where prepared text goes.
    """

    tokenizer_name: str = "gpt2"
    block_size: int = 1024
    data_dir: str = "data"
    vocabulary: str | None = None

    def tokenizer(self) -> Vocabulary:
        """The vocabulary's settings."""
        if self.tokenizer_name != "gpt2":
            return parse_tokenizer(self.tokenizer_name)
        if self.vocabulary is not None:
            return Gpt2(file=self.vocabulary)
        warnings.warn(
            f"GPT-2's vocabulary files are not here and nothing is fetched: {GPT2_TOKENS:,} tokens, or as many as it "
            "gives, are learned from the training text. DataConfig(vocabulary=FOLDER) uses GPT-2's own.",
            stacklevel=3,
        )
        return Bpe(size=GPT2_TOKENS)


class TextDataProcessor:
    """Turns text files into token files."""

    def __init__(self, config: DataConfig | None = None):
        self.config = config or DataConfig()

    def process_dataset(
        self, name: str, train_files: Sequence[str | Path], val_files: Sequence[str | Path]
    ) -> tuple[Path, Path]:
        """Prepares the corpus `name`; returns the files of its training and validation tokens, for `TokenFile`.

        Their folder can be trained on: `homespun train data/NAME`. Raises `DataError` for files that cannot be read.
        """
        sides = {"train": [Path(file) for file in train_files], "valid": [Path(file) for file in val_files]}
        if not all(sides.values()):
            raise DataError(f"The data set {name!r} has no files on one side", "Name training and validation files.")
        if both := {file.resolve() for file in sides["train"]} & {file.resolve() for file in sides["valid"]}:
            raise DataError(f"{min(both)} is on both sides", "Validate on text that is not trained on.")
        target = Path(self.config.data_dir) / name
        with tempfile.TemporaryDirectory(prefix="homespun-") as folder:
            for side, files in sides.items():
                for number, file in enumerate(files):
                    _place(file, Path(folder), f"{side}-{number:05d}")
            corpus.prepare([folder], self.config.tokenizer(), corpus.DataConfig(), target)
        return target / "train.bin", target / "valid.bin"


def _place(file: Path, folder: Path, name: str) -> None:
    """Lets `file` stand in `folder` under a name that declares its side."""
    if not file.is_file():
        raise DataError(f"{str(file)!r} does not exist", "Name files that do.")
    suffix, compression = suffixes(file)
    target = folder / (name + (suffix if suffix in KNOWN else ".txt") + compression)
    try:
        target.symlink_to(file.resolve())
    except OSError:  # a file system, or a Windows, without links
        shutil.copyfile(file, target)


class TokenDataset(ABC):
    """What a data set has to offer: a length, and pairs (x, y) of T token ids each, y one place later in the text.

    Where y is -100 nothing is asked.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


class TokenFile(TokenDataset):
    """The tokens of a prepared file in pieces of `block_size`: each is asked for once, the last piece is filled up."""

    def __init__(self, path: str | Path, block_size: int = DataConfig.block_size):
        path, self.block_size = Path(path), block_size
        opened = corpus.Corpus.open(path.parent)
        if path.name not in ("train.bin", "valid.bin"):
            raise DataError(f"{path} is no token file", "Name the train.bin or valid.bin of a prepared folder.")
        self.tokens = np.asarray((opened.train if path.name == "train.bin" else opened.valid).tokens)

    def __len__(self) -> int:
        return -(-max(0, len(self.tokens) - 1) // self.block_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no piece {index} of {len(self)}")
        places = index * self.block_size + np.arange(self.block_size + 1)
        row = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        asked = np.where(places[1:] < len(self.tokens), row[1:], IGNORED)
        return torch.from_numpy(row[:-1]), torch.from_numpy(asked)


class RandomTokens(TokenDataset):
    """The toy data set: random tokens, the same for the same seed; nothing can be learned but their frequency."""

    def __init__(self, vocab_size: int = GPT2_TOKENS, block_size: int = 1024, items: int = 64, seed: int = 0):
        self.vocab_size, self.block_size, self.items, self.seed = vocab_size, block_size, items, seed

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.items:
            raise IndexError(f"there is no item {index} of {self.items}")
        random = np.random.default_rng([self.seed, index])
        row = torch.from_numpy(random.integers(self.vocab_size, size=self.block_size + 1))
        return row[:-1], row[1:]


@dataclass(frozen=True)
class ModelEvaluator:
    """Measures a model on a data set, `batch_size` items at a time."""

    batch_size: int = 8

    def evaluate_perplexity(self, model: Decoder, dataset: TokenDataset) -> float:
        """exp of the mean loss of a token."""
        nats, tokens = np.sum([_loss(model, batch) for batch in _batches(dataset, self.batch_size)], axis=0)
        return perplexity(float(nats), int(tokens))


@dataclass(frozen=True)
class NanoGPTComparison:
    """Measures two models on the same items in turn, so that a busy machine disturbs both alike."""

    batch_size: int = 8

    def compare_models(
        self, nanokimi_model: Decoder, nanogpt_model: Decoder, dataset: TokenDataset
    ) -> dict[str, dict[str, float]]:
        """For `nanokimi` and `nanogpt`: loss (nats per token), perplexity, parameters, active_parameters, and
        tokens_per_second of reading (the first batch warms up, where there is another one)."""
        models = {"nanokimi": nanokimi_model, "nanogpt": nanogpt_model}
        measured: dict[str, list[tuple[float, int, float]]] = {name: [] for name in models}
        for number, batch in enumerate(_batches(dataset, self.batch_size)):
            for name in sorted(models, reverse=number % 2 == 1):
                begin = time.perf_counter()
                nats, count = _loss(models[name], batch)
                measured[name].append((nats, count, time.perf_counter() - begin))
        return {name: _figures(models[name], rows) for name, rows in measured.items()}


def _figures(model: Decoder, rows: Sequence[tuple[float, int, float]]) -> dict[str, float]:
    nats, tokens = sum(row[0] for row in rows), sum(row[1] for row in rows)
    timed, costs = rows[1:] or rows, cost(model.config)
    return {
        "loss": nats / tokens,
        "perplexity": perplexity(nats, tokens),
        "parameters": costs.parameters,
        "active_parameters": costs.active,
        "tokens_per_second": sum(row[1] for row in timed) / max(sum(row[2] for row in timed), 1e-9),
    }


def _batches(dataset: TokenDataset, rows: int) -> Iterator[Batch]:
    if not len(dataset):
        raise DataError("The data set is empty", "Give more text.")
    for start in range(0, len(dataset), rows):
        items = [dataset[index] for index in range(start, min(start + rows, len(dataset)))]
        yield Batch(*(torch.stack([torch.as_tensor(each) for each in side]) for side in zip(*items, strict=True)))


def _loss(model: Decoder, batch: Batch) -> tuple[float, int]:
    """The summed loss of a batch in nats and its count, without dropout."""
    if not isinstance(model, Decoder):
        raise ConfigError(
            f"{type(model).__name__} is no Decoder", "Import it first: homespun.import_model(FOLDER, RUN)."
        )
    training = model.training
    model.eval()
    with torch.no_grad():
        losses = NextToken().build()(model, batch.to(model.head_weight.device))
        nats = float(losses.loss)  # waits for the device
    model.train(training)
    return nats, losses.count
