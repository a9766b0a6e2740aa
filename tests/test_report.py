"""The report: what goes where, a site that loads nothing from a network, README's numbers."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from recsys_study import front, report
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import InputError

mpl.use("Agg")
ORDER = ["01_first", "11_last"]
CACHED = "ndcg@10 of ten cached 5 ratings ago - of the list of now"


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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("work")
    rows = [
        metric_row(ORDER[0], "svd", "rmse", 0.94, protocol="rating-cv5", variant="classic"),
        metric_row(ORDER[0], "svd", "rmse", 0.93, protocol="rating-cv5", variant="tuned"),
        metric_row(ORDER[0], "popularity", "ndcg@10", 0.21, protocol="ranking-last20"),
    ]
    for number, (stage, name_of_figure) in enumerate(zip(ORDER, report.KEY_FIGURES, strict=False)):
        folder = base / stage
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True)
        mine = rows if number == 0 else [rows[2] | {"stage": stage, "model": "ease"}]
        pd.DataFrame(mine, columns=METRIC_COLUMNS).to_csv(folder / "metrics.csv", index=False, lineterminator="\n")
        evidence = [{"metric": "difference in ndcg@10", "value": 0.0123, "ci_low": 0.001, "ci_high": 0.02, "n": 943}]
        finding = {"id": f"f{number}", "stage": stage, "question": f"Is {number} better?", "answer": "By **much**."}
        finding |= {"confidence": "high", "evidence": evidence}
        (folder / "findings.json").write_text(json.dumps([finding]))
        (folder / "tables" / f"t{number}.csv").write_text("a\n1\n")
        (folder / "figures" / f"{name_of_figure}.png").write_bytes(png())
        (folder / "notebook.ipynb").write_text(executed_notebook(f"Title {number}"))
    (base / ORDER[1] / "tables" / "11_decisions.csv").write_text(
        "id,question,answer,contrast,value,ci_low,ci_high,n,p_holm,verdict\n"
        "f0,Is 0 better?,Yes.,this | that,0.0123,0.001,0.02,90,0.03,better\n"
        f"f0,Is 0 better?,Yes.,{CACHED},-0.0179,-0.021,-0.015,941,0.0002,worse\n"
    )
    (base / ORDER[1] / "recommendations.csv").write_text("user_id,rank\n")
    (base / ORDER[1] / "bundle").mkdir()
    (base / ORDER[1] / "bundle" / "meta.json").write_text("{}")
    stages = {stage: {"seconds": 1.5, "peak_mb": 100} for stage in ORDER}
    stages[ORDER[0]] |= {"budget_seconds": 20.0, "ratings_fitted": 1234, "users_evaluated": 56}
    (base / ORDER[1] / "tables" / "11_beside.csv").write_text(
        "id,contrast_a,verdict_a,value_b,ci_low_b,ci_high_b,verdict_b,agree\n"
        "f0,this | that,better,0.004,-0.01,0.02,undecided,False\n"
        f"f0,{CACHED},worse,-0.0112,-0.015,-0.007,worse,True\n"
    )
    parameters = {"k": 1, "11_findings": {"beside": "published/other/decisions.csv"}}
    run = {"run": "toy", "seed": 1, "parameters": parameters, "git": {"commit": "unknown", "dirty": None},
           "data": {"dataset": "toy", "licence": "free"}, "versions": {"python": "3.11"}, "stages": stages}  # fmt: skip
    (base / "run.json").write_text(json.dumps(run))
    return base


@pytest.fixture(scope="module")
def site(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    row = {"benchmark": "grid", "task": "SVD", "who": "ours", "size": 1000, "unit": "ratings", "seconds": 0.5}
    bench = {"about": "On 2 cores.", "figure": "Seconds by size.", "rows": [row], "remarks": {"grid": ["Same best."]}}
    (target / "bench.json").write_text(json.dumps(bench))
    (target / "bench.png").write_bytes(png())
    report.assemble(workspace, target, ORDER)
    return target


def test_everything_stands_where_the_design_says(site: Path) -> None:
    for name in (
        "index.html", "notebooks/01_first.ipynb", "findings.json", "tables/metrics.csv", "tables/t0.csv",
        "tables/t1.csv", "tables/timings.csv", "figures/alpha_curves.png", "recommendations.csv", "bundle/meta.json",
        "run.json", "pages/01_first.html", "search.html", "searchindex.js",
    ):  # fmt: skip
        assert (site / name).is_file(), name
    assert [f["id"] for f in json.loads((site / "findings.json").read_text())] == ["f0", "f1"]
    rows = pd.read_csv(site / "tables/metrics.csv", keep_default_na=False)
    assert list(rows.columns) == METRIC_COLUMNS
    assert rows["stage"].tolist() == [ORDER[0]] * 3 + [ORDER[1]]


def test_the_first_page_says_what_each_stage_took_and_saw(site: Path) -> None:
    rows = {cells[0]: cells[1:] for cells in table_rows((site / "index.html").read_text()) if cells[0] in ORDER}
    assert rows == {ORDER[0]: ["2", "20", "100", "1,234", "56"], ORDER[1]: ["2", "", "100", "", ""]}


def table_rows(page: str) -> list[list[str]]:
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] or [""]
        for row in found
    ]


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
    page = (site / "pages/01_first.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2
    assert not re.search(r"<script[^>]*mathjax", page, re.I)
    assert len(re.findall(r'<details class="[^"]*hide above-input">', page)) == 1  # one for both cells


def test_the_index_answers_first(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    for text in ("Is 0 better?", "<strong>much</strong>", "[0.001, 0.020]", "0.930 [0.920, 0.940]", "free", "Title 1"):
        assert text in page, text
    assert "0.940 [0.930" not in page  # the tuned variant is shown, not the classic one


def test_the_decisions_stand_before_the_answers(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    rows = [row for row in table_rows(page) if row[0] == "Is 0 better?"]
    assert len(rows) == 1, "a row a question, its contrasts stacked"
    answer, decided, verdict, other = rows[0][1:]
    assert answer == "Yes."
    assert "this | that: +0.012 [+0.001, +0.020], n = 90, p 0.03" in decided
    assert "cached 5 ratings ago less the list of now: -0.018 [-0.021, -0.015], n = 941" in decided
    assert decided.count(", p ") == 1, "the least p is told below the table"
    assert "the first does better" in verdict
    assert "a list 5 ratings old does worse" in verdict
    assert "differs: can’t be told apart, +0.004 [-0.010, +0.020]" in other
    assert "same, -0.011 [-0.015, -0.007]" in other
    assert page.index("The decisions") < page.index("<strong>much</strong>")


def test_the_bottom_line_comes_first(site: Path) -> None:
    page = unescape(re.sub(r"<[^>]+>", "", (site / "index.html").read_text(encoding="utf-8")))
    page = page[page.index("gives, each with its interval") :]
    short = page[page.index("In short") : page.index("Words used")]
    assert "Worth it: the first (+0.012 [+0.001, +0.020])" in short
    assert "Not worth it: a list 5 ratings old (-0.018 [-0.021, -0.015] ndcg@10; does worse)." in short
    assert "2 of 2 deciding differences are not zero" in short
    assert "1 of 2 verdicts repeat on other; not: the first (better here, undecided there)." in short
    assert "Offline is not online" in short


@pytest.mark.parametrize(("high", "said"), [(0.009, True), (0.012, False)])
def test_a_peer_would_do_only_if_it_ties(high: float, said: bool) -> None:
    """An interval that holds 0 and reaches beyond the margin is undecided, not the same."""
    row = {"metric": "ndcg@10, blend - EASE alone, ranking-last20", "value": 0.003, "ci_low": -0.004, "n": 900}
    answers = {
        "alpha-curve": {"evidence": [row | {"ci_high": high}]},
        "export": {"answer": "The blend, fitted on all."},
    }
    metrics = pd.DataFrame(
        [("ranking-last20", model, "", "all", "ndcg@10", 0.2, 0.1, 0.3, 900) for model in ("blend", "popularity")],
        columns=METRIC_COLUMNS[1:],
    )
    assert ("EASE alone would do" in front._ships(metrics, answers)) is said


@pytest.mark.parametrize(
    ("low", "told"), [(0.0, "does the same."), (-0.03, "differs from the blend by +0.000 [+0.000, +0.030].")]
)
def test_unrated_items_are_compared_with_content_in_words(low: float, told: str) -> None:
    rows = [
        {"metric": "ndcg@10 on withheld items, blend - EASE alone", "value": 0.1, "ci_low": 0.05, "ci_high": 0.15},
        {"metric": "ndcg@10 on withheld items, blend - content", "value": 0.0, "ci_low": low, "ci_high": 0.0},
    ]
    assert front._on_new_items({"cold-start": {"evidence": rows}}).endswith(f"; content by itself {told}")


def test_what_is_undecided_is_neither_worth_it_nor_not() -> None:
    row = {"id": "x", "contrast": "a - b", "value": 0.0, "ci_low": -0.02, "ci_high": 0.02, "p_holm": 1.0}
    told = [
        front.in_short(pd.DataFrame(columns=METRIC_COLUMNS), [], pd.DataFrame([row | {"verdict": verdict}]), {})
        for verdict in ("undecided", "not worse", "tie")
    ]
    assert [t.partition(":**")[0] for t in told] == ["- **Open", "- **Open", "- **Not worth it"]


def test_cards_fold_what_is_long() -> None:
    evidence = [{"metric": "m", "value": 1.5, "ci_low": 1, "ci_high": 2, "n": 3}]
    finding = {"id": "f", "stage": "01", "question": "Q?", "confidence": "low", "evidence": evidence}
    finding |= {"answer": "One is. Two are. Three are. Four are."}
    shown, folded = report._card(finding).split("<details>")
    assert "One is. Two are. Three are." in shown
    assert "Four are." not in shown
    assert "Four are." in folded
    assert "| m | 1.500 | [1, 2] | 3 |" in folded
    long = report._card(finding | {"answer": f"One is. Two are. {'Three ' * 99}are."}).split("<details>")[0]
    assert long.count("Three") == 0


def code(source: str, *outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


def shown(text: str, **metadata: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"text/markdown": text}, "metadata": metadata}


def test_pages_hold_neither_doubles_nor_empty_sections() -> None:
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": "# T", "metadata": {}},
            code("k = 1", tags=("parameters",)),
            code("k = 2", tags=("injected-parameters",)),
            code("a = k"),
            code("a", shown("two")),
            {"cell_type": "markdown", "source": "## Planted truth\n\nText", "metadata": {}},
            code("if smoke: ...", shown("real data: nothing planted", **{report.ASIDE: True})),
            {"cell_type": "markdown", "source": "## Kept", "metadata": {}},
            code("note()", shown("an aside", **{report.ASIDE: True}), shown("and a result")),
            code("b = 3"),
            {"cell_type": "markdown", "source": "## References", "metadata": {}},
            code("stage.close(fitted=1)"),
        ]
    }
    cells = json.loads(report.readable(json.dumps(notebook)))["cells"]
    assert [cell["source"] for cell in cells] == [
        "# T", "k = 2\n\na = k\n\na", "## Kept", "note()", "b = 3", "## References",
        "## Not part of this run\n\n- *Planted truth* real data: nothing planted",
    ]  # fmt: skip
    assert all("hide-input" in cell["metadata"]["tags"] for cell in cells if cell["cell_type"] == "code")


def test_text_stands_to_the_left_in_every_table() -> None:
    head = "<tr><th></th><th>model</th><th>value</th></tr>"
    body = '<tr><th>0</th><td id="a" class="data">EASE</td><td>0.192 [0.179, 0.206]</td></tr>'
    html = report.aligned(f"<table>{head}{body}</table>")
    assert '<td id="a" class="text data">EASE</td>' in html
    assert '<th class="text">model</th>' in html
    assert "<td>0.192 [0.179, 0.206]</td>" in html
    assert "<th>value</th>" in html


def test_what_was_measured_has_a_page(site: Path) -> None:
    page = (site / "pages/speed.html").read_text(encoding="utf-8")
    for text in ("Speed and memory", "On 2 cores.", "1,000 ratings", "Same best.", "Seconds by size.", "bench.png"):
        assert text in page, text
    assert 'href="pages/speed.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert "0.5" not in (site / "tables/metrics.csv").read_text(encoding="utf-8")


def test_the_site_is_light(site: Path) -> None:
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 8e6


def test_a_table_name_taken_twice_is_refused(workspace: Path, tmp_path: Path) -> None:
    extra = workspace / ORDER[1] / "tables" / "t0.csv"
    extra.write_text("a\n2\n")
    try:
        with pytest.raises(ValueError, match=r"tables/t0\.csv is taken"):
            report.assemble(workspace, tmp_path, ORDER)
    finally:
        extra.unlink()


def test_publish_and_readme_agree(site: Path, tmp_path: Path) -> None:
    size = report.publish(site, tmp_path / "published")
    assert size == sum(file.stat().st_size for file in (tmp_path / "published").iterdir())
    assert {"bench.json", "bench.png"} <= {file.name for file in (tmp_path / "published").iterdir()}
    text = report.with_headline(f"top\n{report.BEGIN}\nold\n{report.END}\nrest\n", tmp_path / "published")
    assert "| SVD | 0.930 [0.920, 0.940] |  |" in text
    row = next(
        line for line in text.splitlines() if line.startswith("| [Is 0 better?](reports/published/01_first.ipynb) |")
    )
    assert "this \\| that: **+0.012 [+0.001, +0.020]**, n = 90, p 0.03<br>" in row
    assert "- **How sure:** 2 of 2" in text
    assert "- **Is 1 better?** By much. *(confidence: high)*" in text
    assert "- **Is 0 better?**" not in text  # stands in the table
    assert "\nold\n" not in text
    assert text.startswith("top\n")
    assert text.endswith("\nrest\n")
    assert report.with_headline(text, tmp_path / "published") == text


def test_a_second_data_set_is_published_beside_the_first_and_survives_it(site: Path, tmp_path: Path) -> None:
    second = shutil.copytree(site, tmp_path / "elsewhere")
    decisions = pd.read_csv(second / "tables" / "11_decisions.csv")
    decisions.assign(verdict="worse", contrast="that | this").to_csv(
        second / "tables" / "11_decisions.csv", index=False
    )
    published = tmp_path / "published"
    assert report.publish_beside(second, published) > 0
    report.publish(site, published)
    text = report.with_headline(f"{report.BEGIN}\n{report.END}", published)
    assert "1 of 2 verdicts repeat on elsewhere; not: the first (better here, worse there)." in text
    assert "| verdict | on elsewhere |" in text
    assert "**differs**: does worse, +0.012 [+0.001, +0.020]" in text


def test_the_ladder_stands_in_readme_once_it_is_published(site: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    report.publish(site, published)
    (published / "ladder").mkdir()
    (published / "ladder" / "ladder.csv").write_text(
        "protocol,model,variant,segment,metric,value,ci_low,ci_high,n,source\n"
        "rating-cv5,svd,SVD,all,rmse,0.91,0.9,0.92,90,here\nrating-cv5,svd,SVD,all,mae,0.7,0.6,0.8,90,here\n"
        "rating-u1,svd,SVD,all,rmse,0.93,0.92,0.94,40,here\nrating-u1,published,GHRS,,rmse,0.887,,,,theirs\n"
    )
    text = report.with_headline(f"{report.BEGIN}\n{report.END}", published)
    assert "| rung | RMSE (rating-cv5) | RMSE (rating-u1) |" in text
    assert "| SVD | 0.910 [0.900, 0.920] | 0.930 [0.920, 0.940] |" in text
    assert "| *published: GHRS* |  | 0.887 |" in text
    assert "0.700" not in text


def test_publish_refuses_paths_of_a_machine(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "report"
    shutil.copytree(site / "figures", copy / "figures")
    for folder in ("notebooks", "tables"):
        (copy / folder).mkdir()
    for table in ("metrics", "11_decisions"):
        (copy / f"tables/{table}.csv").write_text("")
    (copy / "findings.json").write_text("[]")
    (copy / "notebooks/a.ipynb").write_text(executed_notebook("see /home/someone/data"))
    with pytest.raises(InputError, match="/home/someone/data"):
        report.publish(copy, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_nothing_to_publish_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recsys run params/none\.yaml"):
        report.publish(tmp_path / "none", tmp_path / "published")


def test_readme_needs_its_markers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BEGIN headline"):
        report.with_headline("nothing", tmp_path)
