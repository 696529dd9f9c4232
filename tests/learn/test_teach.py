"""Teaching by hand: what is taught is known, what was known stays, and everything can be undone."""

from __future__ import annotations

import gzip
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from homespun.data.conversation import encode, render
from homespun.data.grow import grow
from homespun.data.vocabulary import Bytes, Chars
from homespun.errors import CheckpointError, ConfigError, DataError
from homespun.learn import keep
from homespun.learn.lessons import pair_lesson, rows_of, text_lesson
from homespun.learn.teach import Taught, Teacher, Teaching
from homespun.model.decoder import Decoder
from homespun.model.embedding import Embedding
from homespun.run import load, recipe, train
from homespun.train.disk import release
from homespun.train.log import PlainConsole
from tests.train.forks import killed_at, needs_fork

QUICK = Teaching(held_out_tokens=2048, replay_rows=4)
PAIRS = [("What is 2+2?", "Four."), ("Who barks?", "A dog."), ("The sky?", "Blue.")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny model on stories."""
    folder = tmp_path_factory.mktemp("teach") / "run"
    chosen = recipe(
        "house-tiny", "model.width=32", "model.layers=1", "model.context=64", "tokenizer.kind=bytes",
        "train.steps=40", "train.batch_tokens=1024", "train.precision=fp32", "train.compile=off",
        "train.evaluate_tokens=2048",
    )  # fmt: skip
    train("stories:300", chosen, folder, console=PlainConsole(quiet=True))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return load(tmp_path / "run")


def answer(run, question: str) -> str:
    prompt = encode(render({"prompt": question, "completion": ""}), run.tokenizer)
    return run.generator.generate(prompt, run.sampling.model_copy(update={"temperature": 0.0, "max_tokens": 20}))


def test_pairs_that_were_taught_are_answered_and_the_old_text_stays(run):
    teacher = keep.teacher_of(run, settings=QUICK)
    found = [teacher.learn_qa(*pair) for pair in PAIRS]
    assert [answer(run, question) for question, _ in PAIRS] == [reply for _, reply in PAIRS]
    assert all(each.known == 1 and each.loss_after < 0.3 < each.loss_before for each in found)
    assert found[-1].held_out_after < found[0].held_out_before * 1.02
    assert found[1].held_out_before == found[0].held_out_after


def test_without_replay_the_old_text_is_lost(run):
    """That the other test can fail."""
    before = keep.teacher_of(run, settings=QUICK.model_copy(update={"replay": 0, "hold": 0}))
    found = [before.learn_qa(*pair) for pair in PAIRS]
    assert found[-1].held_out_after > found[0].held_out_before * 1.02


def test_a_lesson_is_undone_to_the_bit_and_only_once(run):
    teacher = keep.teacher_of(run, settings=QUICK)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    teacher.learn("A text to read. A text to read.")
    assert any(not torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    teacher.undo()
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    assert teacher.lessons == ()
    with pytest.raises(ConfigError, match="no lesson to undo"):
        teacher.undo()


def test_one_update_of_a_sequence_lowers_its_loss(run):
    found = keep.teacher_of(run, settings=QUICK).train_on_sequence("The quick brown fox jumps over the lazy dog.")
    assert found.steps == 1 and found.loss_after < found.loss_before


def test_what_is_asked(run):
    end = run.tokenizer.end
    (pair,) = [rows_of([pair_lesson("ab", "c")], run.tokenizer, 64)]
    assert pair.targets[pair.targets >= 0].tolist() == [*run.tokenizer.encode("c"), end]
    text = rows_of([text_lesson("x" * 100)], run.tokenizer, 64)
    assert text.lengths.tolist() == [64, 37] and text.tokens[0] == end
    assert text.targets.tolist() == [*run.tokenizer.encode("x" * 100), end]
    for lesson, words in [(text_lesson(""), "no text"), (pair_lesson("a", ""), "no answer"),
                          (pair_lesson("a" * 50, "b" * 50), "the model reads 64")]:  # fmt: skip
        with pytest.raises(DataError, match=words):
            rows_of([lesson], run.tokenizer, 64)


def test_it_is_kept_as_the_next_checkpoint_and_taken_back(run):
    step, before = run.step, {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    saved = keep.teach(run, [pair_lesson(*PAIRS[0])], settings=QUICK)
    again = load(run.folder)
    assert saved.step == again.step == step + saved.taught.steps > step
    assert answer(again, PAIRS[0][0]) == PAIRS[0][1]
    later = keep.teach(
        again, [pair_lesson(*PAIRS[1])], settings=QUICK
    )  # beside the first, which the checkpoint remembers
    again = load(run.folder)
    assert [answer(again, question) for question, _ in PAIRS[:2]] == [reply for _, reply in PAIRS[:2]]
    assert keep.undo(run.folder) == (later.step, saved.step)
    assert keep.undo(run.folder) == (saved.step, step)
    with pytest.raises(CheckpointError, match="not taught by hand"):
        keep.undo(run.folder)
    back = load(run.folder)
    assert back.step == step
    assert all(torch.equal(before[name], tensor) for name, tensor in back.model.state_dict().items())


def test_it_is_kept_as_a_run_of_its_own(run, tmp_path):
    from homespun.generate.template import template_of

    before = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    saved = keep.teach(run, [pair_lesson(*PAIRS[0])], tmp_path / "new", settings=QUICK)
    new = load(tmp_path / "new")
    assert new.step == saved.step and answer(new, PAIRS[0][0]) == PAIRS[0][1] and template_of(new).conversational
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == before
    with pytest.raises(CheckpointError, match="made by this lesson"):
        keep.undo(tmp_path / "new")
    with pytest.raises(ConfigError, match="exists already"):
        keep.teach(new, [pair_lesson(*PAIRS[1])], tmp_path / "new", settings=QUICK)


def test_a_lesson_that_goes_wrong_changes_nothing(run):
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(DataError):
        keep.teach(run, [pair_lesson("a" * 100, "b")], settings=QUICK)
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    assert load(run.folder).step == run.step


def test_what_cannot_be_taught_in_place_is_refused(run):
    with pytest.raises(ConfigError, match="holds an adapter"):
        adapter = SimpleNamespace(tuned=SimpleNamespace(adapter=True))
        keep.teach(SimpleNamespace(recipe=adapter, folder="runs/tuned"), [pair_lesson(*PAIRS[0])])
    (run.folder / "environment.json").write_text(json.dumps({"data": ["gone.txt"]}), encoding="utf-8")
    with pytest.raises(DataError, match="gone.txt") as error:
        keep.teach(run, [pair_lesson(*PAIRS[0])])
    assert "--replay" in error.value.hint


def test_other_text_is_held_on_to_where_a_run_names_none(run, tmp_path):
    (run.folder / "environment.json").unlink()
    assert keep.teacher_of(run, settings=QUICK).train_on_sequence("One update.").drift is None
    (tmp_path / "text.txt").write_text("A text to hold on to. " * 200, encoding="utf-8")
    teacher = keep.teacher_of(run, settings=QUICK, replay=[str(tmp_path / "text.txt")])
    assert teacher.train_on_sequence("One update.").drift is not None


def test_the_command_line(run, tmp_path, capsys):
    from homespun.cli.main import main

    def typed(*words: str) -> dict:
        with pytest.raises(SystemExit) as end:
            main(["teach", str(run.folder), *words, "--json", "--quiet"])
        out, err = capsys.readouterr()
        return json.loads(out) if end.value.code == 0 else {"error": err}

    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Who barks?", "completion": "A dog."}) + "\n", encoding="utf-8")
    told = typed("What is 2+2?", "Four.", "--file", str(file), "teach.held_out_tokens=2048", "teach.replay_rows=4")
    assert told["known"] == told["lessons"] == 2 and told["drift"] < 0.02 and told["step"] > run.step
    assert typed("--undo") == {"folder": str(run.folder), "undone": told["step"], "step": run.step}
    assert "has no answer" in typed("What is 2+2?")["error"]
    assert "no lesson" in typed()["error"]
    for words in (["a", "b"], ["teach.steps=3"], ["--replay", "x"], ["--checkpoint", "best"]):
        assert "teaches nothing" in typed(*words, "--undo")["error"]


def test_files_of_lessons_are_read_as_data_is(tmp_path):
    from homespun.cli.teach import _rows

    def read(name: str, data: bytes) -> list[dict]:
        (tmp_path / name).write_bytes(data)
        return list(_rows([tmp_path / name]))

    row = {"prompt": "a", "completion": "b\u2028c"}
    line = json.dumps(row, ensure_ascii=False)
    assert read("a.jsonl", line.encode("utf-8-sig") + b"\n\n" + line.encode()) == [row, row]
    assert read("a.jsonl.gz", gzip.compress(line.encode())) == [row]
    assert read("a.txt", "some \r\ntext".encode("utf-16")) == [{"text": "some \ntext"}]
    for name, data in [("a.jsonl", b"[" * 100_000), ("a.jsonl", b"[1]"), ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}"),
                       ("a.txt", b"\xff"), ("a.jsonl.gz", b"no")]:  # fmt: skip
        with pytest.raises(DataError, match=name):
            read(name, data)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_ends_a_lesson_early_the_model_is_as_it_was(run, monkeypatch, error):
    teacher = keep.teacher_of(run, settings=QUICK)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    updates = []

    def say(total: int, step: int, loss: float) -> None:
        updates.append((total, step))
        if step == 3:
            raise error

    teacher.say = say
    run.model.train()
    with pytest.raises(error):
        teacher.learn_qa(*PAIRS[0])
    assert updates == [(200, 1), (200, 2), (200, 3)] and run.model.training and teacher.lessons == ()
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_lesson_shows_how_far_it_is(run):
    told = []

    class Seen(PlainConsole):
        def update(self, step, metrics):
            told.append((step, metrics["total"], metrics["loss"] > 0, metrics["seconds_left"] >= 0))

    quick = QUICK.model_copy(update={"passes": 2})
    keep.teach(run, [text_lesson("One text.")], settings=quick, console=Seen(quiet=True))
    assert told == [(1, 2, True, True), (2, 2, True, True)]


def test_what_are_no_lessons_is_said_and_any_iterable_is_taken(run):
    teacher = keep.teacher_of(run, settings=QUICK)
    for given in ("a text", ["a text"], dict(pair_lesson("a", "b")), [("a", "b")]):
        with pytest.raises(DataError, match="Lessons are a list of rows"):
            teacher.teach(given)
    with pytest.raises(DataError, match="nothing to learn"):
        teacher.teach([])
    assert teacher.teach((text_lesson(text) for text in ("One.", "Two.")), steps=1).lessons == 2


class Compared(dict):
    """A row that counts how often any is compared."""

    times = 0

    def __eq__(self, other):
        Compared.times += 1
        return dict.__eq__(self, other)

    __hash__ = None


def test_many_lessons_cost_what_they_are(run, monkeypatch):
    """Neither is each compared with each, nor are all read to see that the first one is not known yet."""
    teacher = keep.teacher_of(run, settings=QUICK.model_copy(update={"replay_rows": 0}))
    teacher.material = None
    read, inside = [], teacher._objective.token_losses
    monkeypatch.setattr(teacher._objective, "token_losses", lambda *given: read.append(1) or inside(*given))
    lessons = [Compared(pair_lesson(f"{number}?", f"{number}.")) for number in range(320)]
    teacher.settings = teacher.settings.model_copy(update={"steps": 1, "learning_rate": 1e-9})
    assert teacher.teach(lessons).steps == 10
    assert Compared.times <= len(lessons) and len(read) == 10 + 10 + 10  # before, one for each update, after


def test_of_two_answers_to_one_question_the_later_one_is_learnt(run):
    teacher = keep.teacher_of(run, settings=QUICK)
    first = teacher.learn_qa("Who barks?", "A dog.")
    teacher.learn_qa("The sky?", "Blue.")
    second = teacher.learn_qa("Who barks?", "A seal.")
    assert (first.replaced, second.replaced, second.known) == (0, 1, 1)
    assert second.steps < QUICK.steps  # both together would never be sure
    assert [answer(run, question) for question in ("Who barks?", "The sky?")] == ["A seal.", "Blue."]
    assert [lesson["completion"] for lesson in teacher.lessons] == ["Blue.", "A seal."]
    again = teacher.teach([pair_lesson("Who barks?", "A dog."), pair_lesson("Who barks?", "A seal.")], steps=1)
    assert (again.lessons, again.replaced) == (1, 1)


def test_the_same_text_is_not_repeated_twice_and_one_sequence_not_at_all(run):
    teacher = keep.teacher_of(run, settings=QUICK.model_copy(update={"passes": 1}))
    assert [teacher.learn(text).replaced for text in ("One text.", "Another.", "One text.")] == [0, 0, 0]
    teacher.train_on_sequence("A third.")
    assert [lesson["text"] for lesson in teacher.lessons] == ["Another.", "One text."]


def test_who_has_learnt_texts_alone_is_not_talked_to(run, tmp_path):
    from homespun.generate.template import template_of

    quick = QUICK.model_copy(update={"passes": 1})
    keep.teach(run, [text_lesson("One text.")], settings=quick)
    assert not template_of(load(run.folder)).conversational
    keep.teach(load(run.folder), [pair_lesson("Who barks?", "A dog.")], settings=quick)
    assert template_of(load(run.folder)).conversational
    keep.undo(run.folder)
    assert not template_of(load(run.folder)).conversational


def test_undoing_says_what_is_missing(run):
    quick = QUICK.model_copy(update={"passes": 1})
    for text in ("One.", "Two."):
        first, run = run.step, load(keep.teach(run, [text_lesson(text)], settings=quick).folder)
    shutil.rmtree(run.folder / "checkpoints" / f"step-{first:08d}")
    with pytest.raises(CheckpointError, match=f"Step {first} .* is gone"):
        keep.undo(run.folder)


def test_lessons_go_with_a_run_that_is_trained_on(run):
    """The updates of a lesson count as steps, so the same command trains no more: it leaves the lesson as it is."""
    chosen, quiet = run.recipe, PlainConsole(quiet=True)
    saved = keep.teach(run, [text_lesson("One text.")], settings=QUICK.model_copy(update={"passes": 1}))
    for text, steps in (("stories:300", 40), ("stories:300", saved.step + 2)):
        release(run.folder / "checkpoints")
        trained = train(text, recipe(chosen, f"train.steps={steps}"), run.folder, console=quiet)
        assert trained.step == max(saved.step, steps)
        assert keep.teacher_of(trained).lessons == ({"text": "One text."},)
        release(run.folder / "checkpoints")
        if trained.step > saved.step:
            with pytest.raises(CheckpointError, match="not taught by hand"):
                keep.undo(run.folder)
        else:
            assert keep.undo(run.folder) == (saved.step, run.step)
            saved = keep.teach(load(run.folder), [text_lesson("One text.")], settings=QUICK)


def test_what_was_learnt_after_a_lesson_is_not_undone_with_it(run):
    """A learner keeps all that the state holds, also the note of the lesson before."""
    from homespun.train.checkpoint import Checkpoints

    saved = keep.teach(run, [text_lesson("One text.")], settings=QUICK.model_copy(update={"passes": 1}))
    checkpoints = Checkpoints(run.folder / "checkpoints")
    files, state = checkpoints.read(checkpoints.find(str(saved.step), lambda note: None))
    later = saved.step + 3
    checkpoints.save(later, files, state | {"progress": state["progress"] | {"step": later}})
    with pytest.raises(CheckpointError, match="not taught by hand"):
        keep.undo(run.folder)
    assert later in checkpoints.steps()


def test_another_process_at_work_is_told_and_nothing_changes(run):
    """`claim` is of the process, so that another one has to ask."""
    import fcntl

    lock = (run.folder / "checkpoints" / ".lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    for act in (lambda: keep.teach(run, [pair_lesson(*PAIRS[0])], settings=QUICK), lambda: keep.undo(run.folder)):
        with pytest.raises(CheckpointError, match="Another process"):
            act()
    lock.close()
    assert load(run.folder).step == run.step


@needs_fork
def test_killed_anywhere_a_lesson_is_there_or_not_and_nothing_is_lost(run, tmp_path, monkeypatch):
    def one_number(teacher, lessons):
        with torch.no_grad():
            next(teacher.model.parameters()).add_(1)
        teacher.lessons += tuple(lessons)
        return Taught(1, 1, 5, 1.0, 0.5)

    monkeypatch.setattr(Teacher, "teach", one_number)
    (run.folder / "environment.json").unlink()  # no text of its own
    before = next(run.model.parameters()).detach().clone()

    def changed(folder) -> bool:
        """Whether a run has the lesson; it has all of it or nothing."""
        now = load(folder)
        has = now.step != run.step
        assert now.step == run.step + 5 * has and torch.equal(next(now.model.parameters()), before + has)
        return has

    found = {"teach": set(), "undo": set()}
    for act, more in found.items():
        for moment in range(500):
            folder = tmp_path / f"{act}-{moment}"
            shutil.copytree(run.folder, folder)
            if act == "undo":
                keep.teach(load(folder), [pair_lesson(*PAIRS[0])])
                release(folder / "checkpoints")
            given = load(folder)
            works = {"teach": lambda: keep.teach(given, [pair_lesson(*PAIRS[0])]), "undo": lambda: keep.undo(folder)}  # noqa: B023
            killed = killed_at(moment, works[act])
            more.add(changed(folder))
            if changed(folder):
                keep.undo(folder)
                assert not changed(folder)
            shutil.rmtree(folder)
            if not killed:
                break
        assert moment > 5 and more == {True, False}


# -- a vocabulary that grows -------------------------------------------------------------------------------------------


def test_a_vocabulary_grows_and_no_id_changes_its_meaning():
    old = Bytes().build([], 0)[0]
    grown = grow(old, "the cat and the cat", 300)
    new = grown.tokenizer
    assert 260 < new.vocab_size <= 300 and sorted(grown.parts) == list(range(260, new.vocab_size))
    assert new.special == old.special and new.pieces()[:260] == old.pieces()
    for text in ("the cat", "", "thé <|user|> cat\n\n  x", "\U0001f408 the cat"):
        assert new.decode(new.encode(text)) == text
    assert len(new.encode("the cat")) < 7
    for token, (left, right) in grown.parts.items():
        assert new.piece(token) == new.piece(left) + new.piece(right)
    again = grow(new, "another dog, another dog", 400)
    assert again.tokenizer.pieces()[: new.vocab_size] == new.pieces() and again.tokenizer.vocab_size > new.vocab_size
    assert grow(old, "the cat and the cat", 262).tokenizer.vocab_size == 262
    assert grow(old, "abc", 300).parts == {}


def test_growing_touches_only_the_words_that_hold_the_new_token(monkeypatch):
    """Once it counted all pairs of all words anew for each token: hours for a megabyte."""
    from homespun.data import grow as growing

    touched, inside = [], growing._joined
    monkeypatch.setattr(growing, "_joined", lambda *given: touched.append(1) or inside(*given))
    text = " ".join(f"{a}{b}{a}" for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst")
    found = grow(Bytes().build([], 0)[0], f"{text} {text}", 400)
    assert len(found.parts) == 140 and len(touched) < 400 * len(found.parts) / 10


def test_tokens_are_made_of_the_commonest_pairs_first():
    found = grow(Bytes().build([], 0)[0], "aaaa aaaa bc bc bc", 400)
    pieces = [found.tokenizer.piece(token) for token in sorted(found.parts)]
    assert pieces == [b"aa", b" b", b" bc", b"aaaa"]


def test_only_a_vocabulary_over_bytes_grows():
    with pytest.raises(ConfigError, match="over bytes"):
        grow(Chars().build(["abc"], 3)[0], "abab", 400)


def test_a_new_token_starts_between_its_parts():
    torch.manual_seed(0)
    shape = recipe("alen-micro", "model.vocab=300").model
    teacher = Teacher(Decoder(shape), Bytes().build([], 0)[0], settings=Teaching(passes=1), grows=True)
    before = teacher.model.model.embed_tokens.weight.detach().clone()
    found = teacher.learn("abab")
    assert found.words == 1 and teacher.tokenizer.encode("abab") == [260, 260]
    ids = Bytes().build([], 0)[0].encode("ab")
    moved = (teacher.model.model.embed_tokens.weight[260] - before[ids].mean(0)).abs().max()
    assert moved < 0.01  # but for one update
    teacher.undo()
    assert teacher.tokenizer.vocab_size == 260 and torch.equal(teacher.model.model.embed_tokens.weight, before)


def test_a_new_token_has_a_vector_in_the_head_of_words_too():
    torch.manual_seed(0)
    shape = recipe("alen-micro", "model.vocab=300").model.model_copy(update={"embedding": Embedding(size=8)})
    teacher = Teacher(Decoder(shape), Bytes().build([], 0)[0], settings=Teaching(passes=1), grows=True)
    head = teacher.model.embedding_head
    with torch.no_grad():
        head.word_score.normal_()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    teacher.learn("abab")
    ids = Bytes().build([], 0)[0].encode("ab")
    for name, table in (("words", head.words), ("word_score", head.word_score)):
        assert torch.allclose(table[260], before[f"embedding_head.{name}"][ids].mean(0))
    teacher.undo()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())


def test_dropout_is_off_in_lessons_and_the_mode_is_kept():
    shape = recipe("alen-micro", "model.vocab=260", "model.dropout=0.5").model
    teacher = Teacher(Decoder(shape).train(), Bytes().build([], 0)[0], settings=Teaching(passes=2))
    first = teacher.learn("abc")
    teacher.undo()
    assert teacher.model.training and teacher.learn("abc").loss_after == first.loss_after
