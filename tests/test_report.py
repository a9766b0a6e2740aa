"""The report: which file goes where, a site that loads nothing from a network, README's numbers."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from recsys_study import report
from recsys_study.findings import decisions
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import InputError

mpl.use("Agg")
ORDER = ["01_ingest", "11_last"]


def png() -> bytes:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot(np.arange(5))
    file = io.BytesIO()
    figure.savefig(file)
    plt.close(figure)
    return file.getvalue()


def executed_notebook(title: str) -> str:
    outputs: list[dict[str, Any]] = [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": base64.b64encode(png()).decode()}},
        {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<table><tr><td>1</td></tr></table>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": f"# {title}\n\nWith $\\alpha_n^2$ and\n\n$$x = \\frac{{a}}{{b}}$$"},
        {"cell_type": "code", "source": "output = ''", "outputs": [], "execution_count": 1},
        {"cell_type": "code", "source": "plot()", "outputs": outputs, "execution_count": 2},
    ]
    for number, cell in enumerate(cells):
        cell |= {"id": f"c{number}", "metadata": {"tags": ["parameters"]} if number == 1 else {}}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


def metric_row(
    stage: str, model: str, metric: str, value: float, *, protocol: str, variant: str = ""
) -> dict[str, Any]:
    number = {"value": f"{value:.6f}", "ci_low": f"{value - 0.01:.6f}", "ci_high": f"{value + 0.01:.6f}", "n": "943"}
    return {
        "stage": stage, "protocol": protocol, "model": model, "variant": variant, "segment": "all", "metric": metric,
    } | number  # fmt: skip


def finding(number: int, stage: str, id: str, verdict: str) -> dict[str, Any]:
    contrast = {"id": "a-b", "label": "this | that", "of": "ndcg@10", "unit": "ndcg@10", "value": 0.0123,
                "ci_low": 0.011, "ci_high": 0.02, "n": 943, "margin": 0.01, "p": 0.03, "verdict": verdict,
                "primary": True}  # fmt: skip
    return {"id": id, "stage": stage, "question": f"Is {number} better?", "answer": "By **much**.", "facts": {},
            "confidence": "high", "contrasts": [contrast], "caveats": ["Not everywhere."]}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("work")
    rows = [
        metric_row(ORDER[0], "svd", "rmse", 0.94, protocol="rating-cv5", variant="classic"),
        metric_row(ORDER[0], "svd", "rmse", 0.93, protocol="rating-cv5", variant="tuned"),
        metric_row(ORDER[0], "popularity", "ndcg@10", 0.21, protocol="ranking-last20"),
    ]
    for number, (stage, id) in enumerate(zip(ORDER, ("caching", "export"), strict=True)):
        folder = base / stage
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True)
        mine = rows if number == 0 else [rows[2] | {"stage": stage, "model": "ease"}]
        pd.DataFrame(mine, columns=METRIC_COLUMNS).to_csv(folder / "metrics.csv", index=False, lineterminator="\n")
        (folder / "findings.json").write_text(json.dumps([finding(number, stage, id, "better")]))
        (folder / "tables" / f"t{number}.csv").write_text("a\n1\n")
        (folder / "notebook.ipynb").write_text(executed_notebook(f"Title {number}"))
    last = base / ORDER[1]
    (last / "figures" / report.KEY_FIGURE).write_bytes(png())
    (last / "tables" / "11_beside.csv").write_text("id,contrast,verdict_b\ncaching,a-b,undecided\n")
    answers = [json.loads((base / stage / "findings.json").read_text())[0] for stage in ORDER]
    decisions(answers).to_csv(last / "tables" / "11_decisions.csv", index=False)
    (last / "recommendations.csv").write_text("user_id,rank\n")
    (last / "bundle").mkdir()
    (last / "bundle" / "meta.json").write_text("{}")
    stages = {stage: {"seconds": 1.5, "peak_mb": 100} for stage in ORDER}
    stages[ORDER[0]] |= {"budget_seconds": 20.0, "ratings_fitted": 1234, "users_evaluated": 56}
    run = {"run": "toy", "seed": 1, "parameters": {"k": 1}, "git": {"commit": "unknown", "dirty": None},
           "data": {"dataset": "toy", "licence": "free"}, "versions": {"python": "3.11"}, "stages": stages}  # fmt: skip
    (base / "run.json").write_text(json.dumps(run))
    return base


@pytest.fixture(scope="module")
def site(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    row = {"benchmark": "grid", "task": "SVD", "who": "ours", "size": 1000, "unit": "ratings", "seconds": 0.5}
    bench = {"about": "On 2 cores.", "figure": "Seconds by size.", "remarks": {"grid": ["Same best."]}}
    (target / "bench.json").write_text(json.dumps(bench | {"rows": [row | {"peer": False}]}))
    (target / "bench.png").write_bytes(png())
    report.assemble(workspace, target, ORDER)
    return target


def test_every_file_is_where_the_design_says(site: Path) -> None:
    for name in (
        "index.html", "notebooks/01_ingest.ipynb", "findings.json", "tables/metrics.csv", "tables/t0.csv",
        "tables/t1.csv", "tables/timings.csv", "figures/alpha_curves.png", "recommendations.csv", "bundle/meta.json",
        "run.json", "pages/01_ingest.html", "pages/answers.html", "search.html", "searchindex.js",
    ):  # fmt: skip
        assert (site / name).is_file(), name
    assert [f["id"] for f in json.loads((site / "findings.json").read_text())] == ["caching", "export"]
    rows = pd.read_csv(site / "tables/metrics.csv", keep_default_na=False)
    assert list(rows.columns) == METRIC_COLUMNS
    assert rows["stage"].tolist() == [ORDER[0]] * 3 + [ORDER[1]]
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 8e6


def table_rows(page: str) -> list[list[str]]:
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] or [""]
        for row in found
    ]


def test_the_first_page_holds_decisions_models_and_what_each_stage_took(site: Path) -> None:
    rows = {cells[0]: cells[1:] for cells in table_rows((site / "index.html").read_text(encoding="utf-8"))}
    answer, label, difference, verdict, elsewhere = rows["Is 0 better?"]
    assert (answer, label, verdict, elsewhere) == ("By much.", "this | that", "better", "undecided")
    assert difference.startswith("+0.012 [+0.011, +0.020]")
    assert rows["Is 1 better?"][-1] == "–"
    assert rows["SVD"] == ["0.930 [0.920, 0.940]", ""]  # the tuned variant, not the classic one
    assert rows[ORDER[0]] == ["2", "20", "100", "1,234", "56"]
    assert rows[ORDER[1]] == ["2", "", "100", "", ""]


def test_the_page_of_answers_holds_contrasts_and_caveats(site: Path) -> None:
    page = (site / "pages/answers.html").read_text(encoding="utf-8")
    for text in ('id="caching"', "Not everywhere.", "this | that", "0.06"):  # Holm: 2 * .03
        assert text in page, text


class Loads(HTMLParser):
    """Collects what a page would load by itself: everything but links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a":
            return
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            if values.get(name):
                self.found.append(str(values[name]))
        self.found += outside_urls(values.get("style") or "")


def outside_urls(css: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", css)


def external_loads(folder: Path) -> list[str]:
    """Resources on other hosts that pages or style sheets of a site would load."""
    found = []
    for page in folder.rglob("*.html"):
        parser = Loads()
        text = page.read_text(encoding="utf-8")
        parser.feed(text)
        found += [f"{page.name}: {u}" for u in parser.found if re.match(r"(https?:)?//", u)]
        scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
        found += [f"{page.name}: script {u}" for s in scripts for u in re.findall(r"https?://[^\s\"']+", s)]
        styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.S)
        found += [f"{page.name}: style {u}" for style in styles for u in outside_urls(style)]
    for sheet in folder.rglob("*.css"):
        found += [f"{sheet.name}: {u}" for u in outside_urls(sheet.read_text(encoding="utf-8"))]
    return found


def test_the_guard_sees_external_loads(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://paper"></a><script src="https://cdn/x.js"></script><img src="//h/i.png">'
        '<style>@import "https://f"</style>'
    )
    (tmp_path / "a.css").write_text("@font-face { src: url(https://fonts/x.woff2) }")
    assert len(external_loads(tmp_path)) == 4


def test_the_site_loads_nothing_from_a_network(site: Path) -> None:
    assert external_loads(site) == []


def test_formulas_are_mathml_and_code_is_folded(site: Path) -> None:
    page = (site / "pages/01_ingest.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2
    assert not re.search(r"<script[^>]*mathjax", page, re.I)
    assert len(re.findall(r'<details class="[^"]*hide above-input">', page)) == 2


def test_of_the_parameters_the_injected_ones_are_shown() -> None:
    cells = [{"cell_type": "code", "metadata": {"tags": [tag]}} for tag in ("parameters", "injected-parameters")]
    shown = report.folded({"cells": [*cells, {"cell_type": "markdown", "metadata": {}}]})["cells"]
    assert [cell["metadata"]["tags"][-1] for cell in shown[:2]] == ["remove-cell", "hide-input"]


def test_what_was_measured_has_a_page(site: Path) -> None:
    page = (site / "pages/speed.html").read_text(encoding="utf-8")
    for text in ("Speed and memory", "On 2 cores.", "1,000 ratings", "Same best.", "Seconds by size.", "bench.png"):
        assert text in page, text
    assert 'href="pages/speed.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_a_table_name_taken_twice_is_refused(workspace: Path, tmp_path: Path) -> None:
    extra = workspace / ORDER[1] / "tables" / "t0.csv"
    extra.write_text("a\n2\n")
    try:
        with pytest.raises(ValueError, match=r"t0\.csv is taken"):
            report.assemble(workspace, tmp_path, ORDER)
    finally:
        extra.unlink()


def test_publish_and_readme_agree(site: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    size = report.publish(site, published)
    assert size == sum(file.stat().st_size for file in published.iterdir())
    assert {"bench.json", "bench.png", "decisions.csv"} <= {file.name for file in published.iterdir()}
    text = report.with_headline(f"top\n{report.BEGIN}\nold\n{report.END}\nrest\n", published)
    assert "| SVD | 0.930 [0.920, 0.940] |  |" in text
    assert "**Is 0 better?**" in text  # an open question
    assert "**Is 1 better?**" not in text
    assert "\nold\n" not in text
    assert text.startswith("top\n")
    assert text.endswith("\nrest\n")
    assert report.with_headline(text, published) == text


def test_a_second_data_set_and_the_discussion_survive_publishing(site: Path, tmp_path: Path) -> None:
    second = shutil.copytree(site, tmp_path / "elsewhere")
    table = pd.read_csv(second / "tables" / "11_decisions.csv")
    table.loc[0, "verdict"] = "worse"
    table.to_csv(second / "tables" / "11_decisions.csv", index=False)
    published = tmp_path / "published"
    assert report.publish_beside(second, published) > 0
    (published / "discussion").mkdir()
    text = published / "discussion" / "caching.md"
    text.write_text("---\ndata: toy\nrelies_on: {a-b: better}\n---\nText.\n")
    report.publish(site, published)
    assert text.exists()
    assert "elsewhere, 1 of 2" in report.with_headline(f"{report.BEGIN}\n{report.END}", published)
    text.write_text(text.read_text().replace("better", "tie"))
    with pytest.raises(InputError, match="caching: a-b is better"):
        report.publish(site, published)


def test_publish_refuses_paths_of_a_machine(site: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(site, tmp_path / "report")
    (copy / "notebooks/a.ipynb").write_text(executed_notebook("see /home/someone/data"))
    with pytest.raises(InputError, match="/home/someone/data"):
        report.publish(copy, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_nothing_to_publish_and_a_readme_without_markers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        report.publish(tmp_path / "none", tmp_path / "published")
    with pytest.raises(InputError, match="BEGIN headline"):
        report.with_headline("nothing", tmp_path)
