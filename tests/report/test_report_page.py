"""The written files: whole, inert, free of addresses, complete, and equal to their results."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_examples import beaten, full, minimal

from sparsewright.core import FileError
from sparsewright.report import write_report

EXAMPLES = {"full": full, "minimal": minimal, "beaten": beaten}
HOSTILE = "</title></pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|*"


class Reader(HTMLParser):
    """Collects elements, attributes and the text of the raw results; checks that elements are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.raw = ""
        self.text = ""
        self._in_raw = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self._in_raw = self._in_raw or dict(attrs).get("id") == "results"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_raw = self._in_raw and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_raw:
            self.raw += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(params=EXAMPLES, scope="module")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    results = EXAMPLES[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    paths = write_report(results, folder)
    assert [path.name for path in paths] == ["report.html", "report.md"]
    return results, folder


def test_the_page_is_well_formed_and_holds_the_raw_results(written: tuple[dict[str, Any], Path]) -> None:
    results, folder = written
    assert json.loads(read(folder / "report.html").raw) == results


def test_the_page_has_no_script_and_no_address(written: tuple[dict[str, Any], Path]) -> None:
    page = written[1] / "report.html"
    for tag, attributes in read(page).seen:
        assert tag not in ("script", "iframe", "object", "embed", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", page.read_text(encoding="utf-8"))
    assert "default-src &#x27;none&#x27;" in page.read_text(encoding="utf-8")


def test_every_link_of_the_page_has_its_goal(written: tuple[dict[str, Any], Path]) -> None:
    seen = read(written[1] / "report.html").seen
    goals = {attributes.get("id") for _, attributes in seen}
    assert all(attributes["href"][1:] in goals for tag, attributes in seen if tag == "a" and attributes["href"])


def test_markdown_tables_have_one_width_each(written: tuple[dict[str, Any], Path]) -> None:
    text = (written[1] / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    results = full()
    results["model"]["source"] = HOSTILE
    results["data"]["metric"] = HOSTILE
    results["layers"][0] |= {"name": HOSTILE, "reason": HOSTILE}
    results["sensitivity"][0]["layer"] = HOSTILE
    results["front"][0] |= {"label": HOSTILE, "kind": HOSTILE, "patterns": {HOSTILE: 1}}
    results["quality"]["test"]["slices"][0]["name"] = HOSTILE
    results["environment"][HOSTILE] = HOSTILE
    results["recipe"][HOSTILE] = [HOSTILE]
    page, text = write_report(results, tmp_path)
    reader = read(page)
    assert {tag for tag, _ in reader.seen}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in reader.seen for name in attributes)
    assert HOSTILE in reader.text
    assert "<script" not in text.read_text(encoding="utf-8").replace("\\<script", "")


def test_charts_are_still_drawings_in_the_colours_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    page = write_report(full(), tmp_path)[0].read_text(encoding="utf-8")
    assert page.count("<svg ") == 4  # two charts, each for a wide page and for a phone
    assert "var(--accent)" in page
    assert "#010a0" not in page
    assert "<title>search 7: 68.16 points" in page


def test_without_altair_the_page_says_what_to_install_and_keeps_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    page = write_report(full(), tmp_path)[0].read_text(encoding="utf-8")
    assert "Chart not drawn: install sparsewright[report]" in page
    assert "<svg" not in page
    assert "search 7" in page


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_report(beaten(), tmp_path / "a")]
    assert first == [path.read_bytes() for path in write_report(beaten(), tmp_path / "b")]


def test_what_was_not_measured_is_named(tmp_path: Path) -> None:
    text = read(write_report(beaten(), tmp_path)[0]).text
    assert "Not measured in this run: energy, other devices." in text


def test_an_estimate_of_energy_is_marked(tmp_path: Path) -> None:
    results = full()
    results["energy"]["source"] = "estimate from 15 W"
    assert "Estimated, not measured." in read(write_report(results, tmp_path)[0]).text


def test_the_chosen_cell_of_each_sparse_layer_is_outlined(tmp_path: Path) -> None:
    results = full()
    seen = read(write_report(results, tmp_path)[0]).seen
    outlined = [a for tag, a in seen if tag == "td" and "chosen" in (a.get("class") or "").split()]
    assert len(outlined) == sum(layer["pattern"] != "dense" for layer in results["layers"])
    assert all("Chosen: cheapest within the budget" in (cell["title"] or "") for cell in outlined)


def test_every_dense_layer_stands_in_the_report_with_its_reason(tmp_path: Path) -> None:
    results = full()
    text = write_report(results, tmp_path)[1].read_text(encoding="utf-8")
    for layer in results["layers"]:
        if layer["pattern"] == "dense":
            name = layer["name"].replace("_", "\\_")
            assert re.search(rf"\| {re.escape(name)} \|.*{layer['reason']}", text)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "got list"),
        ({"epochs": 3}, "keys epochs"),
        ({"version": 9}, "version 1, got 9"),
        ({"version": 1, "table": [{"quality": 0.5}]}, "`table.0.name`"),
        ({"version": 1, "front": [{"label": "a", "predicted_s": "fast"}]}, "`front.0.predicted_s`"),
        ({"version": 1, "bytes": {"ours": float("nan")}}, "`bytes.ours`"),
    ],
)
def test_foreign_results_give_one_sentence_and_write_nothing(results: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=re.escape(expected)):
        write_report(results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_section_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)  # drawing twenty pages would only take time
    for name in set(full()) - {"version"}:
        results = full()
        results[name] = None
        assert len(write_report(results, tmp_path)) == 2


def test_any_figure_may_be_absent(tmp_path: Path) -> None:
    """Every number of the results replaced by None, one list or record shape at a time."""

    def without_numbers(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: without_numbers(part, name) for name, part in value.items()}
        if isinstance(value, list):
            if key in ("interval", "speedup_interval"):
                return None
            return [without_numbers(part, key) for part in value]
        keep = key in ("version", "batch", "seconds", "joules_per_inference", "shape") or isinstance(value, bool)
        return value if keep or not isinstance(value, int | float) else None

    results = full()
    results["energy"] = None
    for layer_patterns in results["front"]:
        layer_patterns["patterns"] = {}
    page = write_report(without_numbers(results), tmp_path)[0]
    assert "not measured" in page.read_text(encoding="utf-8")


def test_figures_may_stand_under_measured_as_a_run_writes_them(tmp_path: Path) -> None:
    flat = full()
    clocked = {"layers", "front", "latency", "table", "prediction", "environment", "devices", "timings", "created"}
    nested = {name: value for name, value in flat.items() if name not in clocked}
    nested["measured"] = {name: flat[name] for name in clocked}
    pages = [write_report(results, tmp_path / name)[1].read_text() for name, results in (("a", flat), ("b", nested))]
    assert pages[0] == pages[1]


def test_plans_far_below_the_chart_are_counted_under_it(tmp_path: Path) -> None:
    results = full()
    for number in range(3):
        row = {"label": f"wild {number}", "predicted_s": 0.01, "predicted_drop": 0.4, "kind": "uniform"}
        results["front"].append(row)
    page = write_report(results, tmp_path)[0].read_text(encoding="utf-8")
    assert "3 plans that lose more than 8.0 points lie below the chart" in page


def test_many_slices_are_folded_and_only_the_largest_drawn(tmp_path: Path) -> None:
    results = full()
    results["quality"]["test"]["slices"] = [
        {"name": f"part {number:02d}", "n": number, "drop": 0.001 * number, "interval": [0.0, 0.002 * number]}
        for number in range(40)
    ]
    page = write_report(results, tmp_path)[0].read_text(encoding="utf-8")
    assert "<summary>40 slices of the test split, the worst first.</summary>" in page
    assert "<title>part 39" in page
    assert "<title>part 05" not in page
