"""The page: self-contained, escaped, whole with whatever the run folder holds."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread
from synthetic import write_run

from es2.errors import Es2Error
from es2.report.build import build

SECTIONS = {
    "Finding": None,
    "Safety margin: does meaning break before safety?": "margin.json",
    "Terms": None,
    "Defence success under attack": None,
    "What the completions were": None,
    "SCAV over P0": None,
    "What it costs": None,
    "Over-refusal": "over_refusal.json",
    "Capability": "capability.json",
    "Drift from the base": "drift.json",
    "Other judges": "judges.json",
    "Every comparison, counted together": None,
    "Leaks": None,
    "Separability, layer by layer": "layers.json",
    "Training": "metrics.jsonl",
    "The prompts in two dimensions": "embeddings.json",
    "Sample completions": "attempts.jsonl",
    "Run facts": "run.json",
}
OPTIONAL = [file for file in SECTIONS.values() if file] + ["config.yaml"]
VOID = {"meta", "link", "br", "hr", "img", "input"}
# What a browser would fetch by itself.
LOADS = re.compile(
    r"""(?:src|href|action|data|poster)\s*=\s*["']?+(?!#|data:,)|@import|url\((?!#)"""
)


class Reader(HTMLParser):
    """Collects what tests ask about and checks that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.headings, self.tags = [], [], [], []
        self.figures_without_words = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "svg" and given.get("role") == "img" and not given.get("aria-label"):
            self.figures_without_words += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "demo")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The report of a whole run folder, not to be written to."""
    return build(write_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def page(built):
    return built.read_text(encoding="utf-8")


def test_every_section_is_there(page):
    assert read(page).headings == list(SECTIONS)
    assert "Left out:" not in page


def test_page_loads_nothing_and_forbids_it(page):
    assert LOADS.findall(page) == []
    assert "http://" not in page and "https://" not in page
    assert "default-src 'none'; script-src 'none'" in page
    assert "script" not in read(page).tags


def test_completions_come_out_escaped(page):
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34; ␀␛[31m" in page
    assert "漢字 é 🙂 ?" in page
    assert "with &lt;i&gt;marks&lt;/i&gt;" in page
    assert "How to kill a &lt;b&gt;process&lt;/b&gt;?" in page


def test_everything_a_run_folder_says_is_escaped(run):
    evil = '"><script>alert(1)</script>'
    texts = {"model": evil, "stopped": evil, "machine": evil, "started": evil, "git": {evil: evil}}
    overlap = [{"a": evil, "b": evil, "kind": evil, "count": evil}]
    stages = {evil: {"seconds": 1, "peak_memory_mb": 2}}
    (run / "run.json").write_text(json.dumps(texts | {"overlap": overlap, "stages": stages}))
    (run / "config.yaml").write_text(f"# {evil}\na: 1\n")
    results = json.loads((run / "results.json").read_text())
    base = results["defences"]["base"]
    base["attacks"][evil] = base["attacks"]["scav"] | {"setting": evil}
    results["defences"][evil] = base
    (run / "results.json").write_text(json.dumps(results))
    layers = json.loads((run / "layers.json").read_text())
    layers["chosen"]["why"] = evil
    layers["curves"][evil] = layers["curves"]["base"]
    (run / "layers.json").write_text(json.dumps(layers))
    embeddings = json.loads((run / "embeddings.json").read_text())
    embeddings["axes"] = evil
    embeddings["layers"] = {evil: {evil: {evil: [[0, 1], [1, 0]]}}}
    (run / "embeddings.json").write_text(json.dumps(embeddings))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, f"validation_{evil}": 0.5, "distance_ratio_" + evil: 2}))
    page = build(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "script" not in read(page).tags


def test_figures_are_described_and_ids_are_unique(page):
    reader = read(page)
    assert reader.figures_without_words == 0
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.tags.count("table") == reader.tags.count("caption") == 11


def test_harmful_answers_stand_behind_a_second_fold(page):
    before = page[: page.index("(a stand-in for a harmful answer)")]
    folds = before.count("<details") - before.count("</details>")
    assert folds == 2
    assert "<details open" not in page


def test_page_is_small(built):
    assert built.stat().st_size < 1_500_000


@pytest.mark.parametrize("file", OPTIONAL)
def test_missing_file_leaves_its_section_out_and_says_so(run, file):
    (run / file).unlink()
    page = build(run).read_text(encoding="utf-8")
    assert f"Left out: {file} is not in the run folder." in page
    assert page.count("Left out:") == 1
    # The headline figure gives up its place where there is none.
    assert sorted(read(page).headings) == sorted(SECTIONS)


def test_results_alone_make_a_page(run):
    for file in OPTIONAL:
        (run / file).unlink()
    page = build(run).read_text(encoding="utf-8")
    assert page.count("Left out:") == len(OPTIONAL)
    assert "rose from 15 to 85" in page


def test_results_with_no_attack_and_no_cost_make_a_page(run):
    (run / "results.json").write_text(json.dumps({"defences": {"base": {}}}))
    page = build(run).read_text(encoding="utf-8")
    assert "Left out: no attack was run." in page
    assert "No attack was run on base." in page


def test_damaged_results_leave_the_old_page_alone(run):
    before = build(run).read_bytes()
    (run / "results.json").write_text("{")
    with pytest.raises(Es2Error):
        build(run)
    assert (run / "report.html").read_bytes() == before


def test_writing_is_atomic(run, monkeypatch):
    path = build(run)
    path.write_text("the old page")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Es2Error, match=r"report\.html: cannot be written \(No space left"):
        build(run)
    assert path.read_text() == "the old page"
    assert not list(run.glob("*.tmp"))


def test_same_run_makes_the_same_page(run):
    assert build(run).read_bytes() == build(run).read_bytes()


def test_facts_of_the_run_are_told(page):
    assert "KL on harmless prompts 0.051 passed 0.05" in page
    assert "5\N{NO-BREAK SPACE}min 20\N{NO-BREAK SPACE}s" in page
    assert "2.5\N{NO-BREAK SPACE}GB" in page
    assert "2 prompts of fit prompts are also in attack prompts (near copies)" in page
    assert "threshold 0.05" in page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("width,dark", [(1100, False), (1100, True), (500, False)])
def test_page_opens_in_a_browser_without_complaint(built, tmp_path, width, dark):
    shot = tmp_path / "page.png"
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run hide-scrollbars"
    flags += " disable-background-networking disable-component-update disable-sync"
    command = [CHROMIUM, *(f"--{flag}" for flag in flags.split())]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    command += [f"--window-size={width},3000", f"--screenshot={shot}"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*command, built.as_uri()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    grey = imread(shot)[..., :3].mean(-1)
    assert grey.std() > 0.05
    assert (grey[-1, 0] < 0.5) is dark or (grey[-1, 0] >= 0.5) is not dark
