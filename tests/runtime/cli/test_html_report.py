"""`inspect --html` and `convert --html`: what they write, what they refuse, and how it looks in a real browser.

TRITGGUF_RECORD_PAGE=1 writes the screenshot in docs/images/.
"""

import base64
import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests import checkpoints
from tests.browser import chromium, show_on
from tests.command_line import run_captured
from tests.gguf_edit import rewrite
from tests.paths import DOCS, ROOT
from tests.report_reader import Report
from tritgguf.converter import convert
from tritgguf.runtime.measure.evaluation import Evaluated, Evaluation
from tritgguf.runtime.measure.file_size import file_size
from tritgguf.runtime.measure.scores import Divergence, Figures

DEMO = ROOT / "vendor" / "demo-model"
HOSTILE = "</title><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"


def eval_json(path: Path, *files: Path) -> Path:
    """What eval prints of files, with some figures."""
    against = Divergence(**dict.fromkeys(Divergence.__dataclass_fields__, 0.05))
    evaluated = tuple(
        Evaluated(file, file_size(file), 2, Figures(100, 9.0 - place, 0.25, against))
        for place, file in enumerate(files)
    )
    path.write_text(json.dumps(Evaluation(evaluated, None, 512).as_json()))
    return path


def test_a_conversion_s_report(tmp_path: Path, monkeypatch, capsys) -> None:
    source, out, page = checkpoints.build("llama1", tmp_path / "m"), tmp_path / "out.gguf", tmp_path / "r.html"
    types = ("--type", "tq2_0", "--tensor-type", "attn_v=q8_0", "--allow-lossy")
    code, printed, err = run_captured(monkeypatch, capsys, "convert", source, out, *types, "--html", page)
    assert (code, printed.splitlines()[-1]) == (0, f"report: {page}"), err
    report = Report(page)
    assert report.data["plan-bytes"] == out.stat().st_size
    assert report.values("errors", "ffn_up") == {"0": 0, "1": 0}
    assert all(0 < error < 0.01 for error in report.values("errors", "attn_v").values())
    assert report.column("exactness", "attn_v")["1"].shade == "lossy"
    assert "converted from m" in report.text
    reasons = report.column("tensors", "reason")
    assert reasons["blk.0.attn_v.weight"].text
    before = page.read_bytes()
    code, _, err = run_captured(monkeypatch, capsys, "convert", source, tmp_path / "b.gguf", *types, "--html", page)
    assert (code, err) == (1, f"error: {page} exists already; add --force to replace it\n")
    assert not (tmp_path / "b.gguf").exists()
    code, *_ = run_captured(monkeypatch, capsys, "convert", source, out, *types, "--html", page, "--force")
    assert (code, page.read_bytes()) == (0, before)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("convert", "{demo}", "--dry-run", "--html", "r.html"), "it is about a written file: leave --dry-run out"),
        (("convert", "{demo}", "r.html", "--html", "r.html"), "it is the GGUF file's name: name another file"),
        (("inspect", "{demo}", "--against", "{demo}"), "it goes into a report: add --html FILE"),
        (("inspect", "{demo}", "--eval", "e.json"), "it goes into a report: add --html FILE"),
        (("inspect", "{demo}", "--html", "no/r.html"), "error: no is no folder"),
        (
            ("inspect", "{demo}", "--html", "r.html", "--against", "{demo}"),
            "is no GGUF file: only files can be compared",
        ),
        (("inspect", "{demo}", "--html", "r.html", "--eval", "e.json"), "so e.json has no figures of it: leave --eval"),
    ],
)
def test_what_makes_no_report(arguments, line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_captured(monkeypatch, capsys, *(part.format(demo=DEMO) for part in arguments))
    assert code in (1, 2)
    assert line in " ".join(err.replace("│", " ").split())
    assert (out, list(tmp_path.iterdir())) == ("", [])


def test_figures_of_another_file(tmp_path: Path, monkeypatch, capsys) -> None:
    file = convert(checkpoints.build("llama1", tmp_path / "m"), tmp_path / "a.gguf", "tq1_0", check=False).out
    other = file.rename(tmp_path / "b.gguf")
    figures, page = eval_json(tmp_path / "eval.json", other), tmp_path / "r.html"
    other.rename(file)
    code, out, err = run_captured(monkeypatch, capsys, "inspect", file, "--html", page, "--eval", figures)
    line = "error: eval.json has the figures of b.gguf, not of a.gguf; evaluate the file: write it with tritgguf eval"
    assert (code, out, err) == (1, "", f"{line} --json\n")
    assert not page.exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def script(browser: Chrome, text: str):
    return browser.execute_script(f"return {text}")


CONTRASTS = """(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const names = [..."01234567"].map(n => "h" + n).concat(["exact", "ternary", "near", "floats", "lossy", "soft"]);
  return names.map(name => {
    const cell = document.createElement("p");
    cell.className = name;
    document.body.append(cell);
    const style = getComputedStyle(cell), ground = getComputedStyle(document.body).backgroundColor;
    const both = [light(style.color), light(name == "soft" ? ground : style.backgroundColor)].sort((a, b) => b - a);
    cell.remove();
    return [name, (both[0] + 0.05) / (both[1] + 0.05)];
  });
})()"""


def test_in_a_browser(browser, tmp_path: Path, monkeypatch, capsys) -> None:
    """In light and dark, on a phone and printed: all of it, without scrolling sideways, requests or complaints."""
    file = convert(DEMO, tmp_path / "demo.gguf", "tq2_0", embedding_type="q4_0", check=False).out
    larger = convert(DEMO, tmp_path / "demo-q8_0.gguf", "q8_0", check=False).out
    figures, page = eval_json(tmp_path / "eval.json", file, larger), tmp_path / "report.html"
    options = ("--html", page, "--against", DEMO, "--eval", figures)
    code, _, err = run_captured(monkeypatch, capsys, "inspect", file, *options)
    assert code == 0, err
    for dark, width in ((False, 1000), (True, 1000), (False, 390), (True, 390), (True, 320)):
        show_on(browser, dark=dark, width=width)
        browser.get(page.as_uri())
        assert script(browser, "document.documentElement.scrollWidth <= innerWidth"), width
        browser.find_element(By.TAG_NAME, "summary").click()
        assert script(browser, "document.documentElement.scrollWidth <= innerWidth"), width
        assert script(browser, "document.querySelectorAll('#tensors tbody tr').length") == 74
        ground = script(browser, "getComputedStyle(document.body).backgroundColor")
        assert (max(int(part) for part in ground[4:-1].split(",")) < 60) == dark
        low = [pair for pair in script(browser, CONTRASTS) if pair[1] < 4.5]
        assert low == []
        # Every cell of the maps is wide enough for its figure.
        assert (
            script(browser, "[...document.querySelectorAll('.heat td')].filter(c => c.scrollWidth > c.clientWidth)")
            == []
        )
        assert script(browser, "performance.getEntriesByType('resource').length") == 0
        assert browser.get_log("browser") == []
    assert script(browser, "document.querySelectorAll('svg rect').length") > 30
    assert script(browser, "[...document.querySelectorAll('svg[role=img]')].every(s => s.getAttribute('aria-label'))")
    assert script(browser, "document.querySelectorAll('circle').length") == 4
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    if os.environ.get("TRITGGUF_RECORD_PAGE"):
        show_on(browser, width=1000, height=1370)
        browser.get(page.as_uri())
        browser.save_screenshot(str(DOCS / "images" / "report.png"))


def test_hostile_names_in_a_browser(browser, tmp_path: Path, monkeypatch, capsys) -> None:
    plain = convert(checkpoints.build("llama1", tmp_path / "m"), tmp_path / "a.gguf", "tq1_0", check=False).out
    extra = {
        "<img src=x onerror=document.title='owned'>": (np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.F32)
    }
    keys = {"tokenizer.chat_template": HOSTILE, "general.name": HOSTILE}
    file = rewrite(plain, tmp_path / "<script>document.title='owned'<script>.gguf", keys=keys, tensors=extra)
    page = tmp_path / "r.html"
    code, _, err = run_captured(monkeypatch, capsys, "inspect", file, "--html", page)
    assert code == 0, err
    browser.get(page.as_uri())
    assert browser.title == f"{file.name} · tritgguf report"
    assert browser.find_elements(By.CSS_SELECTOR, "script, img, iframe, [onerror]") == []
    assert next(iter(extra)) in [
        cell.get_attribute("textContent") for cell in browser.find_elements(By.CSS_SELECTOR, "th")
    ]
    assert browser.get_log("browser") == []
