"""Advice in plain words about a run: each function looks at a few figures and returns a sentence or nothing."""

from __future__ import annotations


def on_sizes(parameters: int, embedding: int, vocab: int, train_tokens: int, planned_tokens: int) -> list[str]:
    """What can be said from the sizes of model, vocabulary, corpus and budget."""
    said = []
    if vocab > 1024 and train_tokens < 30 * vocab:
        said.append(
            f"The vocabulary of {vocab:,} is big for {train_tokens:,} training tokens: most entries are seen a few "
            "times only. Try a smaller one, for example --tokenizer bpe:1024."
        )
    epochs = planned_tokens / max(1, train_tokens)
    if epochs > 20:
        said.append(
            f"This budget reads the text {epochs:.0f} times over. After a few passes a model learns by heart: give "
            "it more text, a smaller budget, or model.dropout=0.1."
        )
    if planned_tokens < 2 * (parameters - embedding):
        said.append(
            f"The model has {parameters:,} parameters but will read {planned_tokens:,} tokens; about 20 for each "
            "parameter are well spent. A smaller model would get further with this budget."
        )
    return said


def rising(losses: list[float], patience: int = 3) -> str | None:
    """Whether the validation loss has risen `patience` evaluations in a row."""
    last = losses[-patience - 1 :]
    if len(last) == patience + 1 and all(a < b for a, b in zip(last, last[1:], strict=False)):
        return (
            f"The validation loss has risen {patience} times in a row, from {last[0]:.3f} to {last[-1]:.3f}: the model "
            "is learning the training text by heart. The best checkpoint is kept; more text, model.dropout=0.1 or "
            "train.patience=3 would help."
        )
    return None
