import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from homespun.errors import CheckpointError, DataError
from homespun.evaluate.report import write_report
from homespun.evaluate.story import Story, number

RECIPE = "name: house-tiny\nmodel:\n  width: 64\n  layers: 2\n"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def measured(steps: int, final: float = 1.5) -> list[dict[str, Any]]:
    """The rows of a run that goes well, validated every tenth step and best ten steps before its end."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        common = {"step": step, "tokens": step * 1000, "seconds": step * 0.5}
        loss = final + 6 * math.exp(-step / 20)
        rates = {"learning_rate": 0.01, "gradient_norm": 0.5, "tokens_per_second": 2000.0}
        rows.append(common | {"loss": loss} | rates)
        if step % 10 == 0:
            loss += 0.1 + (step > steps - 10)
            rows.append(common | {"validation_loss": loss, "validation_bits_per_byte": loss / 2})
    return rows


def make_run(folder: Path, rows: list[dict[str, Any]], recipe: str = RECIPE, **files: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "recipe.yaml").write_text(recipe, "utf-8")
    if "samples" in files:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in files["samples"]), "utf-8")
    if "environment" in files:
        (folder / "environment.json").write_text(json.dumps(files["environment"]), "utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full_run(folder: Path, **changes: Any) -> Path:
    samples = [{"step": step, "prompt": "Once", "text": f" upon step {step}"} for step in (10, 20, 30)]
    environment = {"device": "cpu", "parameters": 1_234_567, "data": ["my text.txt", "stories:5"]}
    return make_run(folder, measured(100), **({"samples": samples, "environment": environment} | changes))


def test_the_page_loads_nothing_and_its_policy_forbids_it_to(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / name) for name in "ab"]
    for path in (write_report(runs[:1]), write_report(runs)):
        page = Page(path)
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", page.source)
        assert not [tag for tag, attributes in page.tags if attributes.keys() & {"src", "href", "srcset", "action"}]
        policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
        script = re.findall(r"<script>(.*?)</script>", page.source, re.S)
        digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
        assert len(script) == 1
        assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_text_from_files_is_shown_and_never_run(tmp_path: Path) -> None:
    runs = []
    for name in ("<b onclick=x>&", "<script>"):
        rows = [*measured(20), {"step": 20, "advice": EVIL}]
        runs.append(
            make_run(
                tmp_path / name,
                rows,
                recipe=f"name: {json.dumps(EVIL + name)}\nnote: </pre>{EVIL}\n",
                samples=[{"step": 1, "prompt": EVIL, "text": EVIL}],
                environment={EVIL: EVIL, "device": EVIL, "data": [EVIL]},
            )
        )
    for chosen in (runs[:1], runs[1:], runs):
        page = Page(write_report(chosen))
        assert len(page.all("script")) == 1 and not page.all("img")
        assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
        assert page.text.count(EVIL) >= 4
        assert all(run.name in page.text for run in chosen)


def test_the_best_validation_makes_the_headline(tmp_path: Path) -> None:
    page = Page(write_report([full_run(tmp_path / "mine")]))
    best = 1.6 + 6 * math.exp(-90 / 20)
    assert f"Best bits per byte{best / 2:.3f}at step 90" in page.text
    assert f"Perplexity{math.exp(best):.4g}" in page.text
    assert "Tokens100kread in training" in page.text and "Time50 s" in page.text
    assert "Tokens per second2,000" in page.text and "Parameters1.23M" in page.text
    assert page.text.count(f"best {best:.3f}") == 1


@pytest.mark.parametrize(
    ("machine", "place"),
    [({"device": "cpu", "cpu": "Old Faithful"}, "on Old Faithful:"), ({"device": "GPU 5", "cpu": "Old"}, "on GPU 5:"),
     ({"device": "cpu"}, "on cpu:"), ({}, "recipe house-tiny:")],
)  # fmt: skip
def test_the_headline_names_what_did_the_work(tmp_path: Path, machine: dict[str, str], place: str) -> None:
    assert place in Page(write_report([full_run(tmp_path / "mine", environment=machine)])).text


def test_the_page_tells_how_to_do_it_again(tmp_path: Path) -> None:
    run = full_run(tmp_path / "mine")
    text = Page(write_report([run])).text
    assert f"homespun train 'my text.txt' stories:5 --recipe {run} --out {run}-again" in text
    assert RECIPE in text


def test_the_newest_sample_is_open_and_the_older_are_folded(tmp_path: Path) -> None:
    source = Page(write_report([full_run(tmp_path / "mine")])).source
    folds = re.findall(r"<details( open)?><summary><b>(Step \d+)", source)
    assert folds == [(" open", "Step 30"), ("", "Step 20"), ("", "Step 10")]
    assert "<mark>Once</mark> upon step 30" in source


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 7.0}],
        [{"step": 1, "loss": None, "gradient_norm": None}, {"step": 2, "loss": math.nan, "learning_rate": math.inf}],
        [{"step": 5, "validation_loss": None, "validation_bits_per_byte": None}],
        [{"step": 5, "validation_loss": 1.25}],
        [
            {"note": "a row of a kind to come"},
            {"step": "seven", "loss": 1.0},
            {"step": 1, "loss": "low", "tokens": True},
        ],
        [{"step": 3, "advice": "more text"}],
    ],
)
def test_a_run_that_hardly_began_has_a_page_too(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = make_run(tmp_path / "young", rows)
    for chosen in ([run], [run, full_run(tmp_path / "grown")]):
        page = Page(write_report(chosen))
        drawn = "".join(str(path["d"]) for path in page.all("path"))
        assert "nan" not in drawn and "inf" not in drawn and "None" not in page.text


def test_a_folder_with_nothing_but_metrics_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", measured(30))
    (run / "recipe.yaml").unlink()
    assert "30 steps" in Page(write_report([run])).text
    assert "bare" in Page(write_report([run, full_run(tmp_path / "full")])).text


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "torn", measured(30))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 31, "los')
    assert Story.read(run).steps == 30


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, True, "3", [3]])
def test_only_finite_numbers_are_drawn(value: Any) -> None:
    assert number({"loss": value}, "loss") is None and number({}, "loss") is None
    assert number({"loss": 3}, "loss") == 3


def test_skipped_steps_are_marked_and_counted(tmp_path: Path) -> None:
    rows = measured(30)
    nulls = [row | {"loss": None} if row["step"] in (7, 20) and "loss" in row else row for row in rows]
    page = Page(write_report([make_run(tmp_path / "nulls", nulls)]))
    assert "2 skipped" in page.text
    assert len([path for path in page.all("path") if path["class"] == "skipped"]) == 2
    totals = [row | {"skipped_steps": 3 * (row["step"] >= 12)} if "loss" in row else row for row in rows]
    story = Story.read(make_run(tmp_path / "totals", totals))
    assert story.skipped == [(12, 3)] and story.skipped_steps == 3


def test_what_a_resumed_run_did_again_counts_once_and_its_clock_goes_on(tmp_path: Path) -> None:
    first, second = measured(35), [row | {"seconds": (row["step"] - 20) * 0.5} for row in measured(50)]
    again = [row for row in second if row["step"] > 20]
    story = Story.read(make_run(tmp_path / "resumed", first + again))
    assert [row["step"] for row in story.training] == list(range(1, 51))
    assert [row["step"] for row in story.validation] == [10, 20, 30, 40, 50]
    assert story.seconds == pytest.approx(25.0)


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    rows = measured(20_000)
    rows[15_000]["gradient_norm"] = 77.0
    samples = [{"step": step, "prompt": "", "text": "a short text " * 5} for step in range(0, 20_000, 20)]
    path = write_report([make_run(tmp_path / "long", rows, samples=samples)])
    page = Page(path)
    assert path.stat().st_size < 350_000
    assert "40 of 1,000 are shown" in page.text
    assert "The highest value, 77, lies above the frame." in page.text


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        full_run(tmp_path / "small"),
        make_run(tmp_path / "wide", measured(100, final=1.2), RECIPE.replace("64", "128")),
        make_run(tmp_path / "other" / "small", measured(100, final=2.0)),
    ]
    page = Page(write_report(runs))
    assert "wide reached the fewest bits per byte" in page.text
    assert page.source.count('class="badge"') == 1
    assert f"{tmp_path.name}/small" in page.text and "other/small" in page.text
    settings = re.search(r"Settings that differ</h2>(.+?)</section>", page.source, re.S)[1]
    assert re.findall(r"<code>(.+?)</code>", settings) == ["model.width"]
    assert [radio["id"] for radio in page.all("input")] == ["over-tokens", "over-seconds", "over-step"]
    curves = [path for path in page.all("path") if path.get("data-name") == "wide"]
    assert len(curves) == 6  # bits per byte and loss, over each of the three


def test_more_runs_than_colours_are_told_apart_by_dashes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{index}", measured(30, final=1 + index / 10)) for index in range(10)]
    looks = {
        path["class"] for path in Page(write_report(runs)).all("path") if path.get("data-name", "").startswith("run")
    }
    assert len([look for look in looks if "line" in look.split()]) == 10


def test_the_page_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / name) for name in "ab"]
    assert write_report(runs[:1]) == runs[0] / "report.html"
    assert write_report(runs) == tmp_path / "comparison.html"
    assert write_report(runs[:1], tmp_path) == tmp_path / "report.html"
    assert write_report(runs[:1], tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_text_with_half_a_character_is_written(tmp_path: Path) -> None:
    run = full_run(tmp_path / "half", samples=[{"step": 1, "prompt": "", "text": "torn \ud83d here"}])
    assert "torn ? here" in Page(write_report([run])).text


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no run at .*nowhere"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(CheckpointError, match=r"holds no metrics\.jsonl"):
        write_report([tmp_path])
    with pytest.raises(DataError, match="No run to report on"):
        write_report([])
    run = full_run(tmp_path / "run")
    with pytest.raises(DataError, match="cannot be written"):
        write_report([run], run / "recipe.yaml" / "page.html")
    (run / "environment.json").write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match=r"environment\.json is damaged"):
        write_report([run])
