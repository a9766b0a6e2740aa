"""The ``recsys`` command. Each command imports what it needs when it runs, so help and repeated runs are quick."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from recsys_utils.base import InputError, counted, project_root

if TYPE_CHECKING:
    import pandas as pd

    from recsys_study.pipeline import Plan

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="A reproducible study of movie recommenders: run it, read it, use what it exports.",
)  # fmt: skip


def option(help: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, **more)


Params = Annotated[Path, typer.Argument(metavar="PARAMS.yaml", help="a file of params/")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="a finished run, such as ml-100k")]
Jobs = Annotated[int | None, option("parallel processes; default: one per core", "N")]
BundleFolder = Annotated[Path | None, option("default: that of the newest finished run", "DIR")]


def main() -> None:
    """Entry point: unusable input is one paragraph on stderr and exit status 2; Ctrl-C is status 130."""
    try:
        app()
    except InputError as error:
        print(textwrap.fill(" ".join(str(error).split()), 100, break_long_words=False), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped; finished stages are kept, and the same command resumes.", file=sys.stderr)
        sys.exit(130)


def plan_from(params: Path, settings: list[str] | None, name: str | None, jobs: int | None) -> Plan:
    """Read and check a parameter file and lay out the run it describes."""
    from recsys_study import parameters
    from recsys_study.pipeline import Plan, chain

    root = project_root()
    values = parameters.load(params, settings or (), root)
    if "tmdb" in values["dataset"]["catalogue"]:
        from recsys_utils.personal.film_facts import tmdb_token

        tmdb_token()  # a run without one would fail after minutes of fetching
    needs = chain(values)
    return Plan(
        root=root, name=name or params.stem, seed=values["seed"], jobs=(os.cpu_count() or 1) if jobs is None else jobs,
        parameters={stage: parameters.for_stage(values, root / "notebooks" / f"{stage}.ipynb") for stage in needs},
        needs=needs, settings=values,
    )  # fmt: skip


@app.command()
def run(
    params: Params,
    set_: Annotated[
        list[str] | None, option("change a parameter, such as dataset.share=0.1; repeatable", "KEY=VALUE", "--set")
    ] = None,
    only: Annotated[str | None, option("run this stage and the stages it needs, without the report", "STAGE")] = None,
    force: Annotated[list[str] | None, option("run this stage even if nothing changed; repeatable", "STAGE")] = None,
    jobs: Jobs = None,
    name: Annotated[str | None, option("the run's name; default: the file's name", "RUN")] = None,
    cluster: Annotated[str, option("a Dask scheduler, tcp://HOST:PORT, or local:N; same results", "ADDRESS")] = "",
) -> None:
    """Run the study: every stage whose code, parameters or inputs changed, then the report reports/RUN/index.html."""
    from recsys_study import pipeline

    plan = replace(plan_from(params, set_, name, jobs), cluster=cluster)
    status = pipeline.run(plan, only=only, force=force or ())
    if status == 0 and only is None:
        print(f"Report: {plan.shown(plan.report / 'index.html')}")
    raise typer.Exit(status)


@app.command()
def fetch(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="ml-100k, -latest-small, -latest, -1m, -10m, -20m, -25m, -32m")
    ],
    archive: Annotated[Path | None, option("use this local copy instead of downloading", "FILE.zip")] = None,
) -> None:
    """Download a data set to data/raw/ and verify its checksum."""
    from recsys_utils.data.fetch import fetch_command

    print(fetch_command(dataset, archive, raw=project_root() / "data" / "raw"))


@app.command()
def recommend(
    ratings: Annotated[
        str, option("title,year,rating, or an export of IMDb, Letterboxd ...; - reads standard input", "FILE|-")
    ],
    bundle: BundleFolder = None,
    model: Annotated[
        Literal["hybrid", "neighbours"],
        option("hybrid: the recommender the study ships; neighbours: well-known films by predicted rating"),
    ] = "hybrid",
    n: Annotated[int, option("length of the list", None, "-n")] = 10,
    format_: Annotated[Literal["table", "csv", "json"], option("output format", None, "--format")] = "table",
    explain: Annotated[bool, option("show what each score consists of", None, "--explain")] = False,
    scale: Annotated[str, option("scale of the file's ratings, such as 1-10", "LO-HI")] = "",
) -> None:
    """Recommend films to a person, from a file of the person's ratings."""
    from recsys_utils.personal.own_ratings import read
    from recsys_utils.personal.own_table import parse_scale
    from recsys_utils.ranking.bundle import Bundle
    from recsys_utils.ranking.recommend import ME, recommend_by_neighbours

    folder = bundle or newest_bundle()
    opened = Bundle.open(folder)
    items = opened.recommender.items
    own = read(ratings, items, opened.scale, source_scale=parse_scale(scale) if scale else None)
    if model == "neighbours":
        films, said = recommend_by_neighbours(opened.neighbours(), items, opened.scale, own, n, explain=explain)
        shown = {"rank": "Rank", "title": "Title", "predicted": "Predicted", "imdb_rating": "IMDb", "year": "Year",
                 "genres": "Genres", "director": "Director"}  # fmt: skip
    else:
        films, said = opened.recommender.recommend(own.profile(items["item_id"].tolist()), [ME], n, explain=explain), ""
        shown = {c: c for c in ("rank", "title", "score", "reason")}
    shown |= {"contributions": "Contributions" if model == "neighbours" else "contributions"} if explain else {}
    print(textwrap.fill(f"{own.report} {said} Bundle: {os.path.relpath(folder)}.", 100), file=sys.stderr)
    if format_ == "csv":
        films.to_csv(sys.stdout, index=False, float_format="%.6f", lineterminator="\n")
    elif format_ == "json":
        print(films.to_json(orient="records", indent=1, force_ascii=False, double_precision=6))
    else:
        print_table(films[list(shown)].rename(columns=shown))


@app.command()
def elicit(
    out: Annotated[Path, option("the ratings file to write; an existing one is continued", "FILE.csv")],
    bundle: BundleFolder = None,
    n: Annotated[int, option("maximum number of questions", None, "-n", min=1)] = 20,
) -> None:
    """Ask a new user to rate films, in the order that 08_elicitation chose, and write a ratings file."""
    from recsys_study.interview import interview
    from recsys_utils.ranking.bundle import Bundle

    opened = Bundle.open(bundle or newest_bundle())
    asked = opened.manifest["about"].get("questions", [])
    questions = opened.recommender.items.set_index("item_id").loc[asked].reset_index()

    def ask(question: str) -> str:
        try:
            return input(question)
        except EOFError:
            return "q"

    known = interview(questions.head(n), opened.scale, out, ask)
    told = f"{counted(known, 'rating')} in {out}. Now: recsys recommend --ratings {out}"
    print("\n" + (told if known else "Nothing was rated."))


@app.command()
def compare(
    run_a: Run,
    run_b: Run,
    format_: Annotated[
        Literal["table", "json"], option("json holds every shared row of metrics.csv", None, "--format")
    ] = "table",
) -> None:
    """Compare the answers and metrics of two runs."""
    from recsys_study import findings

    reports = project_root() / "reports"
    answers, numbers = findings.compare(reports / run_a, reports / run_b)
    if format_ == "json":
        tables = {"decisions": answers, "metrics": numbers}
        print(json.dumps({k: json.loads(t.to_json(orient="records", double_precision=6)) for k, t in tables.items()}))
        return
    shown = {"id": "question", "label": "compared", "value_a": run_a, "verdict_a": "verdict", "value_b": run_b,
             "verdict_b": "verdict there"}  # fmt: skip
    print_table(answers[list(shown)].rename(columns=shown))
    print(f"{len(numbers):,} rows of metrics.csv are shared; {numbers['disjoint'].mean():.0%} have disjoint intervals.")


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME ...]", help="grid, knn, neighbours, ingest, evaluate, latent_traits, pipeline; default: all"
        ),
    ] = None,
    json_: Annotated[Path | None, option("write the results, and a figure, to this file", "FILE", "--json")] = None,
    full: Annotated[bool, option("up to 25 million ratings and every setting: an hour", None, "--full")] = False,
) -> None:
    """Measure speed and memory, next to Surprise, scipy, pandas, scikit-learn and others in the same run."""
    sys.path.insert(0, str(project_root()))
    try:
        from benchmarks import measure
    except ModuleNotFoundError:
        raise InputError(f"{project_root()} has no folder benchmarks/, which holds what is measured.") from None
    measure.command(names or (), full=full, target=json_, show=print_table)


# ---- for maintainers


@app.command()
def publish(
    run: Run, beside: Annotated[bool, option("only its tables, as a second data set", None, "--beside")] = False
) -> None:
    """(Maintainers) Copy a run's findings, metrics and executed notebooks to reports/published/."""
    from recsys_study import report

    reports = project_root() / "reports"
    publish = report.publish_beside if beside else report.publish
    size = publish(reports / run, reports / "published")
    print(f"reports/published: {size / 1e6:.1f} MB of {run}")


@app.command()
def readme(
    check: Annotated[bool, option("only compare; exit status 1 if they differ", None, "--check")] = False,
) -> None:
    """(Maintainers) Update the numbers of README.md from reports/published/."""
    from recsys_study import report

    root = project_root()
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    fresh = report.with_headline(text, root / "reports" / "published")
    if fresh == text:
        return
    if check:
        print("README.md differs from reports/published; `recsys readme` renders it.", file=sys.stderr)
        raise typer.Exit(1)
    path.write_text(fresh, encoding="utf-8")


@app.command()
def reference(params: Params = Path("params/smoke.yaml"), jobs: Jobs = None) -> None:
    """(Maintainers) Run the smoke chain and refresh the executed notebooks in tests/reference/."""
    from recsys_study import pipeline

    plan = plan_from(params, None, None, jobs)
    if pipeline.run(plan) != 0:
        raise typer.Exit(1)
    pipeline.reference(plan, plan.root / "tests" / "reference")


# ---- shared


def newest_bundle() -> Path:
    """Of the newest finished run; generated films only where no run has real ones."""

    def newest_real_first(run: Path) -> tuple[bool, float]:
        return json.loads(run.read_text(encoding="utf-8"))["data"].get("dataset") != "smoke", run.stat().st_mtime

    finished = [run for run in (project_root() / "reports").glob("*/run.json") if (run.parent / "bundle").is_dir()]
    if not finished:
        raise InputError("There is no finished run to take a bundle from: run `make report`, or give --bundle DIR.")
    return max(finished, key=newest_real_first).parent / "bundle"


def print_table(frame: pd.DataFrame) -> None:
    """Print every column, scores with three decimals, nothing for what is not known."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in frame:
        right = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if right else "left")
    for row in frame.itertuples(index=False):
        cells = ("" if pd.isna(cell) else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        table.add_row(*cells)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


if __name__ == "__main__":
    main()
