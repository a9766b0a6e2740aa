"""Assembles a finished run's report: a site that opens from disk without a network, and the files beside it.

The module is also a Sphinx extension (:func:`setup`) that writes formulas as MathML, so no script has to be fetched.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_utils import speed
from recsys_utils.decisions import compare, first_sentence, in_words
from recsys_utils.interfaces import InputError
from recsys_utils.significance import p_text
from recsys_utils.stage import METRIC_COLUMNS, write_csv

PUBLISHED_LIMIT = 4_000_000  # bytes
DECISIONS = "11_decisions.csv"
BENCH = "bench.json"  # what `recsys bench --json` wrote; its figure stands beside it
BEGIN, END = "<!-- BEGIN headline -->", "<!-- END headline -->"
MODELS = {
    "popularity": "popularity", "content": "content (TF-IDF)", "svd": "SVD", "knn": "KNN", "item_knn": "item KNN",
    "ease": "EASE", "neighbours": "neighbours (V1)", "latent_traits": "latent traits (V2)",
    "blend": "blend (no diversity)",
}  # fmt: skip
# (protocol, metric, column title, words by which the variant that stands for a model is preferred)
HEADLINE = (
    ("rating-cv5", "rmse", "RMSE (rating-cv5)", ("tuned", "nested")),
    ("ranking-last20", "ndcg@10", "ndcg@10 (ranking-last20)", ("alpha=learned", "alpha=")),
)
KEY_FIGURES = {  # on the first page, in this order; README shows the first
    "alpha_curves": "Ranking quality by profile size for the learned and the classic curves and the baselines",
    "models": "Rating error and ranking quality of each model, with intervals",
    "diversity_tradeoff": "What each diversity strategy costs in accuracy and gains in variety",
}
READING_DECISIONS = (
    "*p* tests a difference of zero, corrected for all questions of the table together; a *tie* with a small p is a "
    "difference that exists and is smaller than the margin."
)
READING_MODELS = (
    "Each protocol chooses settings of its own, so a model's two columns may belong to different settings; SVD's and "
    "KNN's lists are their highest predicted ratings, often of items that few have seen. The blend here is tuned for "
    "whole histories; what ships serves all sizes."
)
BARE = ("", "relevance=liked")  # a variant that names no setting is the model as the study chose it
_CSS = """
html[data-theme] { --pst-color-primary: #1f5f99; --pst-color-link: #1f5f99; --pst-color-secondary: #a6520a; }
.bd-main .bd-content .bd-article-container { max-width: 62rem; }
.bd-header { display: none !important; }
h1 { font-size: 2.1rem !important; } h2 { font-size: 1.5rem !important; }
.intro p { font-size: 1.12rem; line-height: 1.6; color: var(--pst-color-text-muted); }
.finding.container { max-width: none; border: 1px solid var(--pst-color-border); border-left: .3rem solid #3f90da;
  border-radius: .4rem; padding: .9rem 1.2rem .3rem; margin: 1rem 0; break-inside: avoid; }
.finding .container, .headline.container { padding: 0; max-width: none; }
.finding .question { font-weight: 650; font-size: 1.05rem; margin: 0 0 .4rem; }
.decisions td { font-size: .85rem; vertical-align: top; min-width: 9rem; }
.speed td { font-size: .8rem; }
.headline td, .finding td:nth-child(n+2) { white-space: nowrap; }
.confidence { color: var(--pst-color-text-muted); font-size: .85rem; }
.finding table, .cell_output table, table.docutils { font-size: .85rem; font-variant-numeric: tabular-nums; }
.pst-scrollable-table-container, .cell_output, .table-wrapper { overflow-x: auto; }
.cell_output table { border: 0; border-collapse: collapse; margin: .5rem 0 1rem; }
.cell_output table th, .cell_output table td { border: 0; border-bottom: 1px solid var(--pst-color-border);
  padding: .25rem .7rem; text-align: right; vertical-align: top; }
.cell_output table tbody th { font-weight: normal; }
.cell_output table td:first-child, .cell_output table th:first-child { text-align: left; min-width: 7rem; }
.cell_output table td { max-width: 26rem; white-space: normal; }
.cell_output img, img { max-width: 100%; height: auto; }
math { font-size: 1.08em; } div.math { display: block; overflow-x: auto; padding: .4rem 0; text-align: center; }
div.cell details.hide { margin: .2rem 0; } div.cell details.hide summary { font-size: .8rem; opacity: .75; }
@media (max-width: 600px) { figure, .cell_output { overflow-x: auto; }
  figure img, .cell_output img { min-width: 42rem; } .headline table { font-size: .72rem; }
  .headline td, .headline th { padding: .3rem !important; }
  .finding.container { padding: .7rem .8rem .2rem; } .intro p { font-size: 1.03rem; } }
@media print { .bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, details.hide, .prev-next-footer
  { display: none !important; } .finding { border-color: #999; } a { color: inherit; } }
"""


def assemble(workspace: Path, target: Path, order: Sequence[str]) -> None:
    """Collect the stages of a workspace into a report folder and build its site.

    Parameters
    ----------
    workspace : folder with one finished folder per stage, and run.json
    target : an empty folder; gets index.html, notebooks/, findings.json, tables/, figures/, recommendations.*, bundle/
    order : the stages in reading order

    Raises
    ------
    ValueError : two stages give a table or figure the same name, or a finding or metric row twice.
    """
    stages = [workspace / stage for stage in order]
    for folder in ("notebooks", "tables", "figures"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    run = json.loads((workspace / "run.json").read_text(encoding="utf-8"))
    _write_json(target / "run.json", run)
    findings = [finding for stage in stages for finding in json.loads((stage / "findings.json").read_text("utf-8"))]
    if len({finding["id"] for finding in findings}) < len(findings):
        raise ValueError("two stages give a finding the same id")
    _write_json(target / "findings.json", findings)
    metrics = _merged_metrics(stages)
    _copy_once([*(("tables", stage) for stage in stages), *(("figures", stage) for stage in stages)], target)
    write_csv(metrics, target / "tables" / "metrics.csv")
    timings = pd.DataFrame([{"stage": name, **run["stages"].get(name, {})} for name in order])
    timings.to_csv(target / "tables" / "timings.csv", index=False, lineterminator="\n")
    for stage in stages:
        shutil.copyfile(stage / "notebook.ipynb", target / "notebooks" / f"{stage.name}.ipynb")
        for file in sorted(stage.glob("*recommendations.*")):
            shutil.copyfile(file, target / file.name)
        if (stage / "bundle").is_dir():
            shutil.copytree(stage / "bundle", target / "bundle")
    _build_site(target, order, index_page(target, order, run, findings, metrics))


def _merged_metrics(stages: Sequence[Path]) -> pd.DataFrame:
    """Rows of every stage in order; the numbers stay the text that the stages wrote, so nothing is rounded twice."""
    parts = [pd.read_csv(stage / "metrics.csv", dtype=str, keep_default_na=False) for stage in stages]
    rows = pd.concat(parts, ignore_index=True)[METRIC_COLUMNS]
    twice = rows.duplicated(METRIC_COLUMNS[:6])
    if twice.any():
        raise ValueError(f"metric row given twice: {rows[twice].iloc[0].to_dict()}")
    return rows


def _copy_once(sources: Sequence[tuple[str, Path]], target: Path) -> None:
    for kind, stage in sources:
        for file in sorted((stage / kind).glob("*")):
            copy = target / kind / file.name
            if copy.exists() or copy.name in ("metrics.csv", "timings.csv"):
                raise ValueError(f"{stage.name}: the name {kind}/{file.name} is taken; choose another")
            shutil.copyfile(file, copy)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- the index page


def index_page(
    report: Path, order: Sequence[str], run: dict[str, Any], findings: Sequence[dict[str, Any]], metrics: pd.DataFrame
) -> str:
    """The first page as MyST markdown: decisions, models side by side, answers, where to read on, how it was made."""
    data = run.get("data", {})
    parts = [
        f"# Which recommender, with which settings, for whom?\n\n:::{{container}} intro\nThe answers that the data set "
        f"**{data.get('dataset', run['run'])}** gives, each with its interval. Rating error and ranking are judged "
        "apart; every number names its protocol, and every question links to the notebook that answers it.\n:::\n"
    ]
    if table := decision_summary(report / "tables" / DECISIONS):
        parts += ["## The decisions\n", f":::{{container}} decisions\n{table}\n:::\n", f"{READING_DECISIONS}\n"]
    if table := headline_table(metrics):
        parts += [
            "## Models side by side\n",
            f":::{{container}} headline\n{table}\n:::\n",
            f"{READING_MODELS}\n",
            *_key_figures(report),
        ]
    if limits := data.get("limits"):
        parts += ["## What these data can't answer\n", *(f"- {sentence}" for sentence in limits), ""]
    if (noun := data.get("noun", "film")) != "film":
        parts += [f"Where the fixed text of a notebook speaks of *films*, it means the *{noun}s* of these data.\n"]
    parts += ["## Questions and answers\n", *(_card(finding) for finding in findings)]
    measured = ["- [Speed and memory](pages/speed)"] if (report / BENCH).exists() else []
    parts += ["## Read on\n", *(f"- [{_title(report, stage)}](pages/{stage})" for stage in order), *measured]
    parts += ["", "## How this was made\n", _provenance(run), _files(report)]
    parts += ["```{toctree}\n:hidden:\n:caption: Notebooks\n", *(f"pages/{stage}" for stage in order)]
    parts += ["pages/speed"] * len(measured) + ["```"]
    return "\n".join(parts) + "\n"


def _card(finding: dict[str, Any]) -> str:
    rows = pd.DataFrame(finding["evidence"])
    return "\n".join(
        [
            "::::{container} finding",
            f":::{{container}} question\n{finding['question']}\n:::",
            finding["answer"],
            "",
            f":::{{container}} confidence\nConfidence: **{finding['confidence']}** · "
            f"[{finding['stage']}](pages/{finding['stage']})\n:::",
            "\n<details><summary>Evidence</summary>\n",
            _pipe_table(
                ["evidence", "value", "95 % interval", "n"],
                [
                    [str(r.metric), _number(r.value), _interval(r.ci_low, r.ci_high), f"{r.n:,}"]
                    for r in rows.itertuples()
                ],
            ),
            "\n</details>\n\n::::\n",
        ]
    )


def _key_figures(report: Path) -> list[str]:
    shown = {name: alt for name, alt in KEY_FIGURES.items() if (report / "figures" / f"{name}.png").exists()}
    return [f"\n```{{figure}} figures/{name}.png\n:alt: {alt}\n\n{alt}.\n```\n" for name, alt in shown.items()]


def _title(report: Path, stage: str) -> str:
    """First heading of a stage's notebook."""
    cells = json.loads((report / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            return "".join(cell["source"]).lstrip("# ").split("\n")[0]
    return stage


def _provenance(run: dict[str, Any]) -> str:
    git, data = run["git"], run.get("data", {})
    commit = f"`{git['commit'][:12]}`" + (" with uncommitted changes" if git["dirty"] else "")
    lines = [f"- Commit: {commit}", f"- Root seed: {run['seed']}", f"- Python {run['versions']['python']}"]
    terms = [data.get("licence"), data.get("source"), *data.get("attribution", [])]
    lines += [f"- Data: {text}" for text in dict.fromkeys(terms) if isinstance(text, str)]
    columns = {
        "seconds": "seconds", "budget_seconds": "budget, seconds", "peak_mb": "peak MB (largest process)",
        "ratings_fitted": "ratings fitted", "users_evaluated": "users evaluated",
    }  # fmt: skip
    took = pd.DataFrame.from_dict(run["stages"], orient="index").reindex(columns=list(columns)).dropna(how="all")
    stages = [[stage, *(_whole(value) for value in row)] for stage, *row in took.itertuples()]
    parameters = json.dumps(run["parameters"], indent=1, ensure_ascii=False)
    return "\n".join(
        [
            *lines,
            "",
            _pipe_table(["stage", *columns.values()], stages),
            f"\n<details><summary>Parameters</summary>\n\n```json\n{parameters}\n```\n\n</details>\n",
        ]
    )


def _whole(value: float) -> str:
    """
    >>> _whole(1234.5), _whole(float("nan"))
    ('1,234', '')
    """
    return "" if pd.isna(value) else f"{value:,.0f}"


def _files(report: Path) -> str:
    names = ["findings.json", "tables/metrics.csv", "tables/timings.csv", "run.json"]
    names += sorted(path.name for pattern in ("*recommendations.*", BENCH) for path in report.glob(pattern))
    return "Files beside this page: " + ", ".join(f'<a href="{name}"><code>{name}</code></a>' for name in names) + "\n"


def speed_page(path: Path) -> str:
    """The page of a bench.json as markdown; times stay out of metrics.csv and findings.json."""
    bench = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"# Speed and memory\n\n{bench['about']}\n"]
    if path.with_suffix(".png").exists():
        parts.append(f"```{{figure}} ../figures/bench.png\n:alt: {bench['figure']}\n\n{bench['figure']}\n```\n")
    for name, table in speed.tables(bench):
        parts.append(f"## {name}\n")
        for task, rows in table.groupby("task", sort=False):
            shown = rows.drop(columns="task")
            measured = _pipe_table(shown.columns.tolist(), shown.to_numpy().tolist())
            parts.append(f"**{task}**\n\n:::{{container}} speed\n{measured}\n:::\n")
        parts += [f"- {remark}" for remark in bench["remarks"].get(name, [])]
    return "\n".join(parts)


# ---- tables shared by the site and README


def headline_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row of metrics.csv per track and model: rating error and ranking of the variant that stands for the model."""
    chosen = []
    for protocol, metric, _, words in HEADLINE:
        for model in MODELS:
            wanted = {"protocol": protocol, "metric": metric, "model": model, "segment": "all"}
            rows = metrics[(metrics[list(wanted)] == pd.Series(wanted)).all(axis=1)]
            chosen += sorted(rows.index, key=lambda i: _preference(metrics.loc[i, "variant"], words))[:1]
    return metrics.loc[chosen]


def _preference(variant: Any, words: Sequence[str]) -> int:
    """
    >>> [_preference(v, ("tuned",)) for v in ("relevance=liked", "svd tuned", "classic")]
    [0, 1, 2]
    """
    if pd.isna(variant) or variant in BARE:
        return 0
    return next((place for place, word in enumerate(words, 1) if word in variant), len(words) + 1)


def headline_table(metrics: pd.DataFrame) -> str:
    """Models x the two tracks as a markdown table, each value with its interval; "" when there is no such row."""
    rows = headline_rows(metrics)
    if rows.empty:
        return ""
    cells = {(r.model, r.protocol): f"{_number(r.value)} {_interval(r.ci_low, r.ci_high)}" for r in rows.itertuples()}
    lines = [
        [title, *(cells.get((model, column[0]), "") for column in HEADLINE)]
        for model, title in MODELS.items()
        if model in set(rows["model"])
    ]
    return _pipe_table(["model", *(column[2] for column in HEADLINE)], lines)


def decision_summary(path: Path) -> str:
    """The decision table (see ``decisions``) as markdown: question, short answer, contrast; "" when there is none."""
    if not path.is_file() or (decisions := pd.read_csv(path)).empty:
        return ""
    rows = [
        [
            str(row.question), str(row.answer),
            f"{row.contrast}: {row.value:+.3f} {_interval(row.ci_low, row.ci_high)}",
            f"{row.verdict}; p {p_text(p, len(decisions))}",
        ]
        for row, p in zip(decisions.itertuples(), decisions["p_holm"], strict=True)
    ]  # fmt: skip
    return _pipe_table(
        ["question", "answer in short", "deciding contrast", "verdict; p (Holm)"],
        rows, numbers=False,
    )  # fmt: skip


def _pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A markdown table; ``numbers`` sets every column but the first to the right."""
    align = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, align, *escaped])


def _number(value: Any) -> str:
    """
    >>> _number("0.123456"), _number(12), _number(1234.5)
    ('0.123', '12', '1,234.5')
    """
    number = float(value)
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:,.1f}"


def _interval(low: Any, high: Any) -> str:
    return f"[{_number(low)}, {_number(high)}]" if low != high else "no spread"


# ---- the site


def _build_site(target: Path, order: Sequence[str], index: str) -> None:
    """Render index.md and the executed notebooks with Sphinx into ``target``."""
    from sphinx.application import Sphinx

    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder) / "source", Path(folder) / "site"
        (source / "pages").mkdir(parents=True)
        (source / "_static").mkdir()
        (source / "_static" / "report.css").write_text(_CSS, encoding="utf-8")
        shutil.copytree(target / "figures", source / "figures", ignore=shutil.ignore_patterns("*.svg"))
        (source / "index.md").write_text(index, encoding="utf-8")
        for stage in order:
            page = _folded(_light((target / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8")))
            (source / "pages" / f"{stage}.ipynb").write_text(page, encoding="utf-8")
        if (target / BENCH).exists():
            (source / "pages" / "speed.md").write_text(speed_page(target / BENCH), encoding="utf-8")
            for figure in target.glob("bench.png"):
                shutil.copyfile(figure, source / "figures" / figure.name)
        app = Sphinx(
            source, None, site, site.with_name("doctrees"), "html", confoverrides=_CONFIG, status=None,
            warning=sys.stderr,
        )  # fmt: skip
        app.build()
        if app.statuscode:
            raise RuntimeError("Sphinx could not build the site; its messages are in the log")
        unread = shutil.ignore_patterns("_sources", ".buildinfo", "objects.inv", "*.map", "locales")
        shutil.copytree(site, target, ignore=unread, dirs_exist_ok=True)


_CONFIG: dict[str, Any] = {
    "extensions": ["myst_nb", "recsys_utils.report"],
    "project": "Recommender study",
    "html_title": "Recommender study",
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "use_download_button": False, "use_fullscreen_button": False,
        "show_toc_level": 2, "navbar_persistent": [], "footer_content_items": [],
        "article_header_end": ["toggle-secondary-sidebar"],
    },
    "html_math_renderer": "mathml",
    "html_static_path": ["_static"],
    "html_css_files": ["report.css"],
    "html_copy_source": False,
    "html_show_search_summary": False,  # it would fetch pages, which browsers refuse from disk
    "html_use_index": False,
    "html_show_copyright": False,
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_code_prompt_show": "Show code",
    "nb_code_prompt_hide": "Hide code",
    "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
    "suppress_warnings": ["mystnb.unknown_mime_type", "myst.header"],
}  # fmt: skip


def _folded(text: str) -> str:
    """The notebook with every code cell's input folded."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tags = cell["metadata"].setdefault("tags", [])
            tags += ["hide-input"] if "hide-input" not in tags else []
    return json.dumps(notebook)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx extension: formulas as MathML, which browsers draw themselves."""
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    def inline(translator: Any, node: Any) -> None:
        translator.body.append(convert(node.astext()))
        raise SkipNode

    def block(translator: Any, node: Any) -> None:
        translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True}


# ---- what is committed


def publish(report: Path, target: Path) -> int:
    """Copy a report's findings, metrics, decisions, README's figure and executed notebooks; returns their size.

    Raises
    ------
    InputError : no finished report there, a path of this machine in a notebook, or more than 4 MB in all.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        _copy_answers(report, fresh)
        for file in report.glob(f"{Path(BENCH).stem}.*"):
            shutil.copyfile(file, fresh / file.name)
        figure = f"{next(iter(KEY_FIGURES))}.png"
        (fresh / figure).write_bytes(_small((report / "figures" / figure).read_bytes()))
        for file in sorted((report / "notebooks").glob("*.ipynb")):
            text = _light(file.read_text(encoding="utf-8"))
            if found := re.search(r"[^\s\"'\\]*/(?:home|root|work|Users)/[^\s\"'\\]*", text):
                raise InputError(f"{file} holds a path of this machine, {found.group()}; it can't be published.")
            (fresh / file.name).write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in fresh.iterdir())
        if size > PUBLISHED_LIMIT:
            raise InputError(
                f"The copies take {size / 1e6:.1f} MB; at most {PUBLISHED_LIMIT / 1e6:.0f} MB are published."
            )
        target.mkdir(parents=True, exist_ok=True)
        for old in filter(Path.is_file, target.iterdir()):  # folders hold other runs' answers
            old.unlink()
        shutil.copytree(fresh, target, dirs_exist_ok=True)
    return size


def publish_beside(report: Path, target: Path) -> int:
    """Copy a second data set's answers to a folder beside the published run's; returns their size in bytes."""
    folder = target / report.name
    _copy_answers(report, folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def _other_data(published: Path) -> list[str]:
    """The verdicts on every data set that is published beside the main one, as markdown."""
    found = []
    for folder in sorted(path.parent for path in published.glob("*/decisions.csv")):
        compared = compare(published, folder)[0]
        shown = in_words(compared, "here", folder.name)
        agree = compared["agree"].dropna()
        found.append(
            f"**The same questions on {folder.name}**: {int(agree.sum())} of {len(agree)} verdicts are the same "
            f"(`recsys compare published published/{folder.name}`)."
        )
        found.append(_pipe_table(shown.columns.tolist(), shown.to_numpy().tolist(), numbers=False))
    return found


def _ladder(published: Path) -> list[str]:
    """The accuracy ladder, where it is published, as markdown: a row a rung, a column a protocol."""
    if not (path := published / "ladder" / "ladder.csv").is_file():
        return []
    rows = pd.read_csv(path, keep_default_na=False, na_values={"ci_low": [""], "ci_high": [""]})
    rows = rows[rows["metric"] == "rmse"]
    rows["variant"] = rows["variant"].where(rows["model"] != "published", "*published: " + rows["variant"] + "*")
    rows["text"] = [
        f"{row.value:.3f} {_interval(row.ci_low, row.ci_high)}" if row.model != "published" else f"{row.value:.3f}"
        for row in rows.itertuples()
    ]
    table = rows.pivot_table(index="variant", columns="protocol", values="text", aggfunc="first", sort=False).fillna("")
    head = ["rung", *(f"RMSE ({protocol})" for protocol in table.columns)]
    return ["**The accuracy ladder**", _pipe_table(head, table.reset_index().to_numpy().tolist())]


def _copy_answers(report: Path, target: Path) -> None:
    if not (report / "findings.json").exists():
        raise InputError(f"{report} holds no finished report; `recsys run params/{report.name}.yaml` makes it.")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(report / "findings.json", target / "findings.json")
    for table in ("metrics", "11_decisions"):
        shutil.copyfile(report / "tables" / f"{table}.csv", target / f"{table.removeprefix('11_')}.csv")


def _light(text: str) -> str:
    """The notebook with small figures."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            image = output.get("data", {}).get("image/png")
            if image:
                output["data"]["image/png"] = base64.b64encode(_small(base64.b64decode(image))).decode()
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _small(png: bytes) -> bytes:
    """A picture in 256 colours, which flat plots survive unseen."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


def with_headline(readme: str, published: Path) -> str:
    """README's text with the part between its markers rendered from the published results.

    Raises
    ------
    InputError : README lacks the markers, or nothing is published.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InputError(f"README.md needs the lines {BEGIN} and {END} once each.")
    if not (published / "findings.json").exists():
        raise InputError(f"Nothing is published in {published}; `recsys publish ml-100k` does it.")
    metrics = pd.read_csv(published / "metrics.csv", dtype=str, keep_default_na=False)
    findings = json.loads((published / "findings.json").read_text(encoding="utf-8"))
    decided = published / "decisions.csv"
    table = decision_summary(decided)
    listed = set(pd.read_csv(decided)["id"]) if table else set()
    answers = [
        f"- **{f['question']}** {first_sentence(f['answer'])} *(confidence: {f['confidence']})*"
        for f in findings
        if f["id"] not in listed
    ]
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    name, alt = next(iter(KEY_FIGURES.items()))
    figure = f"![{alt}](reports/published/{name}.png)"
    parts = [headline_table(metrics), figure, table, "\n".join(answers), *_other_data(published), *_ladder(published)]
    rendered = "\n\n".join(filter(None, parts))
    return f"{before}{BEGIN}\n{rendered}\n{END}{after}"
