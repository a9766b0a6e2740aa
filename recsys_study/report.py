"""Assembles a finished run's report: a site that opens from disk without a network, and the files next to it.

The pages are Jinja2 templates filled with data and the executed notebooks. The module is also a Sphinx extension
(:func:`setup`) that writes formulas as MathML, so no script has to be fetched.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_study import bench_tables, findings
from recsys_study.stage_files import METRIC_COLUMNS, write_csv
from recsys_utils.base import InputError, project_root

PUBLISHED_LIMIT = 4_000_000  # bytes
BENCH = "bench.json"  # what `recsys bench --json` wrote; its figure bench.png is next to it
BEGIN, END = "<!-- BEGIN headline -->", "<!-- END headline -->"
KEY_FIGURE = "alpha_curves.png"  # on the first page and in README
TEMPLATES = Path(__file__).with_name("templates")
STYLE = Path(__file__).with_name("report.css")
PUBLISHED = project_root() / "reports" / "published"
Findings = Sequence[Mapping[str, Any]]


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
    answers = [finding for stage in stages for finding in json.loads((stage / "findings.json").read_text("utf-8"))]
    if len({finding["id"] for finding in answers}) < len(answers):
        raise ValueError("two stages give a finding the same id")
    _write_json(target / "run.json", run)
    _write_json(target / "findings.json", answers)
    for stage in stages:
        for file in sorted([*stage.glob("tables/*"), *stage.glob("figures/*")]):
            copy = target / file.parent.name / file.name
            if copy.exists() or copy.name in ("metrics.csv", "timings.csv"):
                raise ValueError(f"{stage.name}: the name {copy.parent.name}/{copy.name} is taken; choose another")
            shutil.copyfile(file, copy)
        shutil.copyfile(stage / "notebook.ipynb", target / "notebooks" / f"{stage.name}.ipynb")
        for file in sorted(stage.glob("*recommendations.*")):
            shutil.copyfile(file, target / file.name)
        if (stage / "bundle").is_dir():
            shutil.copytree(stage / "bundle", target / "bundle")
    write_csv(_merged_metrics(stages), target / "tables" / "metrics.csv")
    timings = pd.DataFrame([{"stage": name, **run["stages"].get(name, {})} for name in order])
    timings.to_csv(target / "tables" / "timings.csv", index=False, lineterminator="\n")
    _build_site(target, order, _pages(target, order, run, answers))


def _merged_metrics(stages: Sequence[Path]) -> pd.DataFrame:
    """Rows of every stage in order; the numbers stay the text that the stages wrote, so nothing is rounded twice."""
    parts = [pd.read_csv(stage / "metrics.csv", dtype=str, keep_default_na=False) for stage in stages]
    rows = pd.concat(parts, ignore_index=True)[METRIC_COLUMNS]
    twice = rows.duplicated(METRIC_COLUMNS[:6])
    if twice.any():
        raise ValueError(f"metric row given twice: {rows[twice].iloc[0].to_dict()}")
    return rows


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- pages


def _pages(report: Path, order: Sequence[str], run: Mapping[str, Any], answers: Findings) -> dict[str, str]:
    """The markdown pages of the site by name: index, the answers in full, speed and memory where it was measured."""
    data = run["data"]
    texts = {text.id: text for text in findings.discussions(PUBLISHED / "discussion", answers, data["dataset"])}
    beside = report / "tables" / "11_beside.csv"
    files = ["findings.json", "tables/metrics.csv", "tables/timings.csv", "run.json"]
    files += sorted(path.name for pattern in ("*recommendations.*", BENCH) for path in report.glob(pattern))
    context = _context(answers, pd.read_csv(report / "tables" / "metrics.csv", keep_default_na=False)) | {
        "run": run, "data": data, "discussions": texts, "files": files, "bench": (report / BENCH).exists(),
        "beside": _by_contrast(pd.read_csv(beside), "verdict_b") if beside.exists() else {},
        "stages": [{"name": name, "title": _title(report / "notebooks" / f"{name}.ipynb"),
                    **run["stages"].get(name, {})} for name in order],
        "figure": KEY_FIGURE if (report / "figures" / KEY_FIGURE).exists() else "",
        "parameters": json.dumps(run["parameters"], indent=1, ensure_ascii=False),
    }  # fmt: skip
    pages = {"index": _fill("index.md.j2", context), "pages/answers": _fill("answers.md.j2", context)}
    if context["bench"]:
        pages["pages/speed"] = speed_page(report / BENCH)
    return pages


def _context(answers: Findings, metrics: pd.DataFrame) -> dict[str, Any]:
    models, decisions = findings.models(metrics), findings.decisions(answers)
    return {
        "findings": {finding["id"]: finding for finding in answers}, "decisions": _records(decisions),
        "p_holm": _by_contrast(decisions, "p_holm"),
        "models": {name: {row["metric"]: row for row in _records(models) if row["model"] == model}
                   for model, name in findings.MODELS.items() if model in set(models["model"])},
        "open_questions": [id for id in findings.OPEN_QUESTIONS if id in {finding["id"] for finding in answers}],
    }  # fmt: skip


def _fill(template: str, context: Mapping[str, Any]) -> str:
    environment = findings.environment(TEMPLATES)
    return environment.get_template(template).render(context, use=environment.get_template("macros.md.j2").module)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _by_contrast(table: pd.DataFrame, column: str) -> dict[Any, Any]:
    return table.dropna(subset=column).set_index(findings.KEY)[column].to_dict()


def _title(notebook: Path) -> str:
    """The first heading of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    heading = next((cell for cell in cells if cell["cell_type"] == "markdown"), {"source": notebook.stem})
    return "".join(heading["source"]).lstrip("# ").split("\n")[0]


def speed_page(path: Path) -> str:
    """The page of a bench.json as markdown; times stay out of metrics.csv and findings.json."""
    bench = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        {"title": bench_tables.TITLES.get(name, name), "remarks": bench["remarks"].get(name, []),
         "tasks": {task: rows.drop(columns="task") for task, rows in table.groupby("task", sort=False)}}
        for name, table in bench_tables.tables(bench)
    ]  # fmt: skip
    figure = path.with_suffix(".png").exists()
    context = {"bench": bench, "summary": bench_tables.summary(bench), "parts": parts, "figure": figure}
    return _fill("speed.md.j2", context)


# ---- the site


def _build_site(target: Path, order: Sequence[str], pages: Mapping[str, str]) -> None:
    """Render the markdown pages and the executed notebooks with Sphinx into ``target``."""
    from sphinx.application import Sphinx

    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder) / "source", Path(folder) / "site"
        (source / "pages").mkdir(parents=True)
        (source / "_static").mkdir()
        shutil.copyfile(STYLE, source / "_static" / STYLE.name)
        shutil.copytree(target / "figures", source / "figures", ignore=shutil.ignore_patterns("*.svg"))
        for figure in target.glob("bench.png"):
            shutil.copyfile(figure, source / "figures" / figure.name)
        for name, text in pages.items():
            (source / f"{name}.md").write_text(text, encoding="utf-8")
        for stage in order:
            notebook = json.loads(_light((target / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8")))
            _write_json(source / "pages" / f"{stage}.ipynb", folded(notebook))
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


def folded(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with its code folded by tags; of the parameters the injected ones are shown."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tags = [cell["metadata"].setdefault("tags", []) for cell in code]
    injected = any("injected-parameters" in each for each in tags)
    for each in tags:
        each.append("remove-cell" if injected and "parameters" in each else "hide-input")
    return notebook


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

    Hand-written discussions stay where they are.

    Raises
    ------
    InputError : no finished report there, a discussion whose verdicts have flipped, a path of this machine in a
        notebook, or more than 4 MB in all.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        _copy_answers(report, fresh)
        answers = json.loads((fresh / "findings.json").read_text(encoding="utf-8"))
        dataset = json.loads((report / "run.json").read_text(encoding="utf-8"))["data"]["dataset"]
        texts = findings.discussions(target / "discussion", answers, dataset)
        if flipped := [each for text in texts for each in text.flipped]:
            raise InputError(f"Discussions in {target} rely on other verdicts: {'; '.join(flipped)}. Rewrite them.")
        for file in report.glob(f"{Path(BENCH).stem}.*"):
            shutil.copyfile(file, fresh / file.name)
        (fresh / KEY_FIGURE).write_bytes(_small((report / "figures" / KEY_FIGURE).read_bytes()))
        for file in sorted((report / "notebooks").glob("*.ipynb")):
            text = _light(file.read_text(encoding="utf-8"))
            if found := re.search(r"[^\s\"'\\]*/(?:home|root|work|Users)/[^\s\"'\\]*", text):
                raise InputError(f"{file} holds a path of this machine, {found.group()}; it can't be published.")
            (fresh / file.name).write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in fresh.iterdir())
        if size > PUBLISHED_LIMIT:
            raise InputError(f"The copies take {size / 1e6:.1f} MB; at most {PUBLISHED_LIMIT / 1e6:.0f} are published.")
        target.mkdir(parents=True, exist_ok=True)
        for old in filter(Path.is_file, target.iterdir()):  # folders hold discussions and other runs' answers
            old.unlink()
        shutil.copytree(fresh, target, dirs_exist_ok=True)
    return size


def publish_beside(report: Path, target: Path) -> int:
    """Copy a second data set's answers to a folder next to the published run's; returns their size in bytes."""
    folder = target / report.name
    _copy_answers(report, folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def _copy_answers(report: Path, target: Path) -> None:
    if not (report / "findings.json").exists():
        raise InputError(f"{report} holds no finished report; `recsys run params/{report.name}.yaml` makes it.")
    target.mkdir(parents=True, exist_ok=True)
    for source, copy in (("findings.json",) * 2, ("tables/metrics.csv", "metrics.csv"),
                         ("tables/11_decisions.csv", "decisions.csv")):  # fmt: skip
        shutil.copyfile(report / source, target / copy)


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
    answers = json.loads((published / "findings.json").read_text(encoding="utf-8"))
    context = _context(answers, pd.read_csv(published / "metrics.csv", keep_default_na=False))
    here = findings.decisions(answers)
    others = {
        path.parent.name: findings.side_by_side(here, pd.read_csv(path))["agree"].dropna().astype(bool)
        for path in sorted(published.glob("*/decisions.csv"))
    }
    rendered = _fill("readme.md.j2", context | {"figure": KEY_FIGURE, "others": others})
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{rendered.strip()}\n{END}{rest.split(END)[1]}"
