"""One cycle: what waits is chosen, trained on beside old text, judged, and kept or taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from homespun.errors import CheckpointError, TrainingError
from homespun.learn import cycles, dedup, replay
from homespun.learn.gate import Verdict, judge
from homespun.learn.journal import Item, Journal
from homespun.learn.pupil import Pupil, Stopped
from homespun.learn.settings import LearnConfig

RATE, SHARE = 0.4, 0.7
"""What each step of caution does to the learning rate, and to the share of new text."""

LEAK = 0.2
"""The share of a text that may stand in held-out text, such as what many texts have in common at their heads."""

HALVINGS = 3
"""How often half of a cycle is taken back before it is refused."""


class Study:
    """Makes cycles, one after the other; `say` is told of each decision. `kept` and `refused` count them, `tokens` the
    new ones in those that were kept."""

    def __init__(self, pupil: Pupil, journal: Journal, settings: LearnConfig, say: Callable[[str, str], None]):
        self.pupil, self.journal, self.settings, self._tell = pupil, journal, settings, say
        self.tokenizer = pupil.tokenizer
        self.kept = self.refused = self.tokens = 0
        self.settle()

    def settle(self) -> None:
        """Brings journal and metrics in line with the newest checkpoint."""
        told, pupil = self.pupil.told, self.pupil
        if told is not None and cycles.unfinished(self.journal, told):
            pupil.metrics.rewind(told["base_step"])  # its rows may be there or not
            pupil.log(told)
        reservoir = self.settings.reservoir_tokens
        for sentence in cycles.settle(self.journal, pupil.progress.step, told, reservoir, self._oldest()):
            self._tell("start", sentence)

    def _oldest(self) -> int:
        return self.pupil.checkpoints.steps()[-self.pupil.recipe.train.keep :][0]

    def cycle(self, stop: Callable[[], bool] = lambda: False) -> bool | None:
        """Learns some of what waits: True where that was kept, False where it was refused, None where nothing could be
        learned yet or `stop` asked to leave it."""
        chosen, novelty = self._choose()
        if not chosen:
            return None
        settings, pupil = self.settings, self.pupil
        caution = cycles.caution(self.journal)
        rate = pupil.recipe.optimizer.learning_rate * settings.learning_rate * RATE**caution
        number, text = self._open_cycle(chosen, novelty, rate, caution)
        new = {item.domain for item in chosen}
        before = pupil.measure(text)
        figures: dict[str, Any] = {"before": before, "after": {}, "training": {}}
        base = pupil.progress.step
        try:
            figures["training"] = pupil.train(text, number, rate, settings.passes, stop)
            verdict = self._judged(text, figures, new)
        except Stopped:
            pupil.restore()
            self.settle()
            return None
        except TrainingError as error:
            return self._refuse(number, figures, error.problem)
        if settings.gate and not verdict.kept:
            return self._refuse(number, figures, verdict.reason)
        told = {"journal": self.journal.id, "cycle": number, "base_step": base, "step": pupil.progress.step,
                "reason": verdict.reason, "drift": verdict.drift, "figures": figures}  # fmt: skip
        return self._keep(number, told)

    def _judged(self, text: replay.CycleText, figures: dict[str, Any], new: set[str]) -> Verdict:
        """What the gate says. Where a cycle went too far, half of its way is taken back, and half of the rest."""
        old, drift = cycles.learned(self.journal), cycles.drift(self.journal)
        before = {name: each["loss"] for name, each in figures["before"].items()}
        for halved in range(HALVINGS + 1):
            if halved:
                self.pupil.halve()
            figures["share"], figures["after"] = 0.5**halved, self.pupil.measure(text)
            after = {name: each["loss"] for name, each in figures["after"].items()}
            verdict = judge(before, after, drift, new, old, self.settings.tolerance)
            if verdict.kept or not self.settings.gate:
                break
        return verdict

    def _keep(self, number: int, told: dict[str, Any]) -> bool:
        try:
            self.pupil.save(told)
        except CheckpointError as error:
            return self._refuse(number, told["figures"], error.problem)
        self.pupil.log(told)
        cycles.keep(self.journal, number, told, self.settings.reservoir_tokens, self._oldest())
        self.pupil.checkpoints.prune(self.pupil.recipe.train.keep)
        self.kept += 1
        self.tokens += int(self.journal.value("SELECT new_tokens FROM cycles WHERE id = ?", number))
        share = told["figures"]["share"]
        self._tell("kept", f"{f'{share:.3g} of cycle' if share < 1 else 'Cycle'} {number} is kept: {told['reason']}")
        return True

    def _refuse(self, number: int, figures: dict[str, Any], reason: str) -> bool:
        self.pupil.restore()
        cycles.refuse(self.journal, number, figures, reason, self.settings.tries)
        self.refused += 1
        self._tell("refused", f"Cycle {number} is refused, and the model is as it was before: {reason}")
        return False

    def _choose(self) -> tuple[list[Item], dict[int, float]]:
        """The oldest texts that wait, enough for a cycle, with their novelty: how much higher their loss is than that
        on old text. What the model knows is passed over, and what is held out already."""
        chosen: list[Item] = []
        total = 0
        for item in self._enough():
            chosen.append(item)
            total += item.tokens
            if total >= self.settings.cycle_tokens and self._together(chosen) == chosen:
                break
        ids = self.tokenizer.encode_batch([item.text for item in chosen])
        losses = self.pupil.losses(ids) if chosen else []
        old = self._loss_on_old()
        novelty = {item.id: loss - old for item, loss in zip(chosen, losses, strict=True)}
        known = [item for item in chosen if old + novelty[item.id] < self.settings.known * old]
        with self.journal.transaction():
            for item in known:
                self.journal.run(
                    "UPDATE items SET state = 'known', novelty = ?, text = NULL WHERE id = ?", novelty[item.id], item.id
                )
        items = self._together([item for item in chosen if item not in known])
        leaking = self._leaking(items)
        with self.journal.transaction():
            for item in leaking:
                self.journal.run("UPDATE items SET state = 'alike', text = NULL WHERE id = ?", item.id)
        return self._together([item for item in items if item not in leaking]), novelty

    def _leaking(self, items: list[Item]) -> list[Item]:
        """Those that would teach what the gate measures with: text that is held out, cut at other places."""
        out = self._held_out(items) if items else []
        held = replay.held(self.journal, self.settings.evaluate_tokens).values()
        texts = [self.tokenizer.decode(tokens.tolist()) for tokens in held]
        measured = dedup.passages("\n".join([*texts, *(item.text for item in out)]))
        others = (item for item in items if item not in out)
        return [item for item in others if dedup.shared(dedup.passages(item.text), measured) > LEAK]

    def _together(self, items: list[Item]) -> list[Item]:
        """Those of a domain of which something is held out, or will be: that takes two."""
        known, counts = set(replay.domains(self.journal, "held")), Counter(item.domain for item in items)
        return [item for item in items if item.domain in known or counts[item.domain] > 1]

    def _enough(self) -> Iterator[Item]:
        """What waits, but for texts alone in a domain of which nothing is held out."""
        counts = {row[0]: row[1] for row in self.journal.rows(
            "SELECT domain, count(*) FROM items WHERE state = 'waiting' GROUP BY domain")}  # fmt: skip
        known = set(replay.domains(self.journal, "held"))
        return (item for item in self.journal.waiting() if item.domain in known or counts[item.domain] > 1)

    def _loss_on_old(self) -> float:
        held = replay.held(self.journal, self.pupil.recipe.model.context * 8)
        found = self.pupil.measure(replay.CycleText(self.tokenizer, replay.Tokens(np.zeros(0)), held)) if held else {}
        known = [found[name]["loss"] for name in cycles.learned(self.journal) if name in found]
        return sum(known) / len(known) if known else 0.0

    def _open_cycle(
        self, items: list[Item], novelty: dict[int, float], rate: float, caution: int
    ) -> tuple[int, replay.CycleText]:
        """Opens the cycle: some texts are held out, the rest is its text, and old text stands beside it."""
        settings, journal = self.settings, self.journal
        with journal.transaction():
            number = cycles.open_cycle(journal, items, novelty, self.pupil.progress.step, rate, caution)
            out = self._held_out(items)
            parts = []
            for item in items:
                ids = [*self.tokenizer.encode(item.text), self.tokenizer.end]
                if item in out:
                    replay.add_span(journal, item.domain, "held", ids, number, item.id)
                    journal.run("UPDATE items SET state = 'held', text = NULL WHERE id = ?", item.id)
                else:
                    cycles.add_new(journal, number, item, ids)
                    parts.append(np.array(ids, dtype=np.int64))
            new = sum(map(len, parts))
            share = (1 - settings.replay) * SHARE**caution if settings.replay else 1.0
            old = replay.draw(journal, round(new / share - new), number, {item.domain for item in items})
            journal.run("UPDATE cycles SET new_tokens = ?, replay_tokens = ? WHERE id = ?", new, len(old), number)
        held = replay.held(journal, settings.evaluate_tokens)
        return number, replay.CycleText(self.tokenizer, replay.Tokens(np.concatenate([*parts, old])), held)

    def _held_out(self, items: list[Item]) -> list[Item]:
        """Those whose hash says so, and one at least of a domain of which nothing is held out yet; never all."""
        out = [item for item in items if int(item.key[:8], 16) < self.settings.held * 2**32]
        known = set(replay.domains(self.journal, "held"))
        for domain in {item.domain for item in items} - known - {item.domain for item in out}:
            out.append(min((item for item in items if item.domain == domain), key=lambda item: item.key))
        return out if len(out) < len(items) else out[1:]
