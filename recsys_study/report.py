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
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_study import bench_tables as speed
from recsys_study.decisions import first_sentence, sentences, side_by_side
from recsys_study.figures import ASIDE
from recsys_study.front import (
    LEVELS,
    READING_MODELS,
    are_numbers,
    decisions_table,
    headline_table,
    in_short,
    interval,
    number,
    pipe_table,
    reading_decisions,
    words_used,
)
from recsys_study.stage_files import METRIC_COLUMNS, write_csv
from recsys_utils.base import InputError

PUBLISHED_LIMIT = 4_000_000  # bytes
DECISIONS = "11_decisions.csv"
BENCH = "bench.json"  # what `recsys bench --json` wrote; its figure stands beside it
BEGIN, END = "<!-- BEGIN headline -->", "<!-- END headline -->"
SHORT = 320  # characters of an answer that a card shows
PLACES = (  # where protocols and confidence words are explained: on the site, and for README
    '<a href="pages/01_ingest.html#the-splits-of-every-protocol">01</a>',
    '<a href="pages/11_findings.html#what-the-confidence-words-mean">in 11</a>',
)
README_PLACES = ("[protocols](recsys_utils/evaluation/protocols.py)", "[in 11](reports/published/11_findings.ipynb)")
KEY_FIGURES = {  # on the first page, in this order; README shows the first
    "alpha_curves": "Ranking quality by profile size for the learned and the classic curves and the baselines",
    "models": "Rating error and ranking quality of each model, with intervals",
    "diversity_served": "What the diversity strategies cost in accuracy for a list closer to the user's genres",
}
STYLE = Path(__file__).with_name("report.css")
BESIDE = "11_beside.csv"


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
    decisions, beside = _decisions(report / "tables" / DECISIONS), _beside(report, run)
    parts += ["## In short\n", in_short(metrics, findings, decisions, beside), ""]
    parts += [_folded_away("Words used in these tables", words_used(*PLACES)), ""]
    if decisions is not None:
        table = decisions_table(decisions, findings, metrics, beside, link="pages/{}")
        parts += ["## The decisions\n", f":::{{container}} decisions\n{table}\n:::\n"]
        parts += [f"{reading_decisions(decisions)}\n"]
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


def _decisions(path: Path) -> pd.DataFrame | None:
    """The table that 11_findings made of the primary contrasts, None when there is none."""
    if not path.is_file() or (decisions := pd.read_csv(path)).empty:
        return None
    return decisions


def _beside(report: Path, run: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The verdicts of the run that 11_findings set beside this one, under its name."""
    named = run["parameters"].get("11_findings", {}).get("beside", "")
    path = report / "tables" / BESIDE
    return {Path(named).parent.name: pd.read_csv(path)} if named and path.is_file() else {}


def _card(finding: dict[str, Any]) -> str:
    rows, told = pd.DataFrame(finding["evidence"]), sentences(finding["answer"])
    shown = 3 if len(" ".join(told[:3])) <= SHORT else 2
    numbers = pipe_table(
        ["evidence", "value", "95 % interval", "n"],
        [[str(r.metric), number(r.value), interval(r.ci_low, r.ci_high), f"{r.n:,}"] for r in rows.itertuples()],
    )
    return "\n".join(
        [
            "::::{container} finding",
            f":::{{container}} question\n{finding['question']}\n:::",
            " ".join(told[:shown]),
            "",
            f":::{{container}} confidence\nConfidence: **{finding['confidence']}** · "
            f"[{finding['stage']}](pages/{finding['stage']})\n:::\n",
            _folded_away(
                "The whole answer and its evidence" if told[shown:] else "Evidence",
                f"{' '.join(told[shown:])}\n\n{numbers}",
            ),
            "\n::::\n",
        ]
    )


def _folded_away(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _key_figures(report: Path) -> list[str]:
    shown = {name: alt for name, alt in KEY_FIGURES.items() if (report / "figures" / f"{name}.png").exists()}
    first = next(iter(KEY_FIGURES))
    return [
        f"\n```{{figure}} figures/{name}.png\n:alt: {alt}\n\n{alt}.{f' {LEVELS}' * (name == first)}\n```\n"
        for name, alt in shown.items()
    ]


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
            pipe_table(["stage", *columns.values()], stages),
            f"\n{_folded_away('Parameters', f'```json{chr(10)}{parameters}{chr(10)}```')}\n",
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


def _measured(rows: pd.DataFrame) -> str:
    return f":::{{container}} speed\n{pipe_table([*map(str, rows)], rows.to_numpy().tolist())}\n:::"


def speed_page(path: Path) -> str:
    """The page of a bench.json as markdown; times stay out of metrics.csv and findings.json."""
    bench = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"# Speed and memory\n\n{bench['about']}\n"]
    if path.with_suffix(".png").exists():
        parts.append(f"```{{figure}} ../figures/bench.png\n:alt: {bench['figure']}\n\n{bench['figure']}\n```\n")
    fastest = speed.summary(bench)
    parts.insert(1, _measured(fastest) + "\n")
    for name, table in speed.tables(bench):
        parts.append(f"## {speed.TITLES.get(name, name)}\n")
        for task, rows in table.groupby("task", sort=False):
            shown = rows.drop(columns="task")
            parts.append(_folded_away(str(task), _measured(shown)) + "\n")
        parts += [_folded_away("What was compared, and growth", "\n".join(f"- {r}" for r in remarks)) + "\n"
                  for remarks in [bench["remarks"].get(name)] if remarks]  # fmt: skip
    return "\n".join(parts)


# ---- the site


def _build_site(target: Path, order: Sequence[str], index: str) -> None:
    """Render index.md and the executed notebooks with Sphinx into ``target``."""
    from sphinx.application import Sphinx

    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder) / "source", Path(folder) / "site"
        (source / "pages").mkdir(parents=True)
        (source / "_static").mkdir()
        shutil.copyfile(STYLE, source / "_static" / STYLE.name)
        shutil.copytree(target / "figures", source / "figures", ignore=shutil.ignore_patterns("*.svg"))
        (source / "index.md").write_text(index, encoding="utf-8")
        for stage in order:
            page = readable(_light((target / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8")))
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
    "extensions": ["myst_nb", "recsys_study.report"],
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
    "html_css_files": [STYLE.name],
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


def readable(text: str) -> str:
    """An executed notebook as the site shows it: code folded, nothing twice, nothing that this run was not asked.

    Of the parameters the injected ones are shown; neighbouring cells without output share a fold with the next one; a
    section whose outputs are nothing but asides (see ``figures.aside``) goes, and its asides stand together at the end.
    """
    notebook = json.loads(text)
    cells, asides = _one_fold(notebook["cells"]), []
    sections: list[list[dict[str, Any]]] = []
    for cell in cells:
        if not sections or (cell["cell_type"] == "markdown" and _source(cell).startswith("## ")):
            sections.append([])
        sections[-1].append(cell)
    kept = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if table := output.get("data", {}).get("text/html"):
                output["data"]["text/html"] = aligned("".join(table))
    for section in sections:
        outputs = [output for cell in section for output in cell.get("outputs", [])]
        if outputs and all(output.get("metadata", {}).get(ASIDE) for output in outputs):
            title = _source(section[0]).partition("\n")[0].lstrip("# ")
            asides += [f"- *{title}* {''.join(output['data']['text/markdown'])}" for output in outputs]
        else:
            kept += section
    if asides:
        told = "\n".join(["## Not part of this run\n", *asides])
        kept.append({"cell_type": "markdown", "id": "asides", "metadata": {}, "source": told})
    return json.dumps(notebook | {"cells": kept})


def aligned(html: str) -> str:
    """The tables of a cell's output with columns of text to the left; a column of numbers starts with digits mostly.

    >>> aligned("<table><tr><th></th><th>b</th></tr><tr><td>x</td><td>1</td></tr></table>")
    '<table><tr><th class="text"></th><th>b</th></tr><tr><td class="text">x</td><td>1</td></tr></table>'
    """
    cell = re.compile(r"<(t[hd])([^>]*)>(.*?)</\1>", re.S)

    def table(found: re.Match[str]) -> str:
        columns: dict[int, list[str]] = {}  # by place from the right, where rows end alike
        for row in re.findall(r"<tr.*?</tr>", found.group(), re.S):
            if "<td" in row:
                for place, each in enumerate(reversed(cell.findall(row))):
                    columns.setdefault(place, []).append(unescape(re.sub(r"<[^>]+>", "", each[2])).strip())
        texts = {place for place, cells in columns.items() if any(cells) and not are_numbers(cells)}

        def marked(found: re.Match[str]) -> str:
            places = iter(range(len(cell.findall(found.group())) - 1, -1, -1))

            def mark(each: re.Match[str]) -> str:
                if next(places) not in texts:
                    return each.group()
                name, attributes, content = each.groups()
                named = "class=" in attributes
                attributes = attributes.replace('class="', 'class="text ') if named else f'{attributes} class="text"'
                return f"<{name}{attributes}>{content}</{name}>"

            return cell.sub(mark, found.group())

        return re.sub(r"<tr.*?</tr>", marked, found.group(), flags=re.S)

    return re.sub(r"<table.*?</table>", table, html, flags=re.S)


def _one_fold(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells with their input folded, those that only compute joined to the next one that shows something."""
    injected = any("injected-parameters" in _tags(cell) for cell in cells)
    folded: list[dict[str, Any]] = []
    for cell in cells:
        if cell["cell_type"] == "code":
            if (injected and "parameters" in _tags(cell)) or _source(cell).startswith("stage.close("):
                continue
            cell["metadata"]["tags"] = [*dict.fromkeys([*_tags(cell), "hide-input"])]
            before = folded[-1] if folded else {}
            if before.get("cell_type") == "code" and not before["outputs"]:
                cell["source"] = f"{_source(folded.pop())}\n\n{_source(cell)}"
        folded.append(cell)
    return folded


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _tags(cell: dict[str, Any]) -> list[str]:
    tags: list[str] = cell["metadata"].get("tags", [])
    return tags


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


def _ladder(published: Path) -> list[str]:
    """The accuracy ladder, where it is published, as markdown: a row a rung, a column a protocol."""
    if not (path := published / "ladder" / "ladder.csv").is_file():
        return []
    rows = pd.read_csv(path, keep_default_na=False, na_values={"ci_low": [""], "ci_high": [""]})
    rows = rows[rows["metric"] == "rmse"]
    rows["variant"] = rows["variant"].where(rows["model"] != "published", "*published: " + rows["variant"] + "*")
    rows["text"] = [
        f"{row.value:.3f} {interval(row.ci_low, row.ci_high)}" if row.model != "published" else f"{row.value:.3f}"
        for row in rows.itertuples()
    ]
    table = rows.pivot_table(index="variant", columns="protocol", values="text", aggfunc="first", sort=False).fillna("")
    head = ["rung", *(f"RMSE ({protocol})" for protocol in table.columns)]
    return ["**The accuracy ladder**", pipe_table(head, table.reset_index().to_numpy().tolist())]


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
    decisions = _decisions(published / "decisions.csv")
    beside, decided = {}, []
    if decisions is not None:
        others = sorted(published.glob("*/decisions.csv"))
        beside = {path.parent.name: side_by_side(decisions, pd.read_csv(path)) for path in others}
        table = decisions_table(decisions, findings, metrics, beside, link="reports/published/{}.ipynb")
        decided = [table, reading_decisions(decisions)]
    listed = {"export", "cf-ranking", *(decisions["id"] if decisions is not None else ())}
    answers = [
        f"- **{f['question']}** {first_sentence(f['answer'])} *(confidence: {f['confidence']})*"
        for f in findings
        if f["id"] not in listed
    ]
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    name, alt = next(iter(KEY_FIGURES.items()))
    figure = f"![{alt}](reports/published/{name}.png)"
    parts = [in_short(metrics, findings, decisions, beside), headline_table(metrics), figure, LEVELS]
    parts += [_folded_away("How to read the tables", words_used(*README_PLACES)), *decided]
    parts += ["\n".join(answers), *_ladder(published)]
    rendered = "\n\n".join(filter(None, parts))
    return f"{before}{BEGIN}\n{rendered}\n{END}{after}"
