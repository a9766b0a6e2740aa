"""What a reader sees first, for the site's first page and README: the short answer, the decisions, the models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from recsys_study.decisions import FAMILY_ERROR, first_sentence
from recsys_utils.evaluation.significance import MARGIN, RESAMPLES, p_text

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
BARE = ("", "relevance=liked")  # a variant that names no setting is the model as the study chose it
SHORT_PROFILES = r"ndcg@10, learned - popularity, n=\d+-\d+, {} order"  # evidence of alpha-curve
_TEXTS = yaml.safe_load(Path(__file__).with_name("front.yaml").read_text(encoding="utf-8"))
READING_MODELS, LEVELS, LIMITS = (str(_TEXTS[name]) for name in ("reading_models", "levels", "limits"))
WORDS, UPKEEP, _VERDICTS = (dict(_TEXTS[name]) for name in ("words", "upkeep", "verdicts"))
_WORTH = {"better": "Worth it", "worse": "Not worth it", "tie": "Not worth it"}  # of other verdicts nothing follows


class Words(NamedTuple):
    """A primary contrast in words: what is measured, in what unit, and what is judged by it."""

    measured: str
    unit: str
    judged: str


def in_plain_words(contrast: str) -> Words:
    """
    >>> in_plain_words("ndcg@10 of ten cached 5 ratings ago - of the list of now").judged
    'a list 5 ratings old'
    >>> in_plain_words("this - that")
    Words(measured='this - that', unit='', judged='the first')
    """
    for known in _TEXTS["contrasts"]:
        if found := re.fullmatch(known["declared"], contrast):
            return Words(*(found.expand(known[name]) for name in Words._fields))
    return Words(contrast, "", "the first")


# ---- in short


def in_short(
    metrics: pd.DataFrame, findings: Sequence[Mapping[str, Any]], decisions: pd.DataFrame | None,
    beside: Mapping[str, pd.DataFrame],
) -> str:  # fmt: skip
    """The bottom line as a markdown list: what ships, what pays and what does not, upkeep, how sure, what isn't said.

    A line whose numbers a run lacks is left out. ``beside``: by data set, ``decisions.side_by_side`` with its verdicts.
    """
    answers = {finding["id"]: finding for finding in findings}
    lines = [_ships(metrics, answers)]
    if decisions is not None:
        told: dict[str, list[str]] = {"Worth it": [], "Not worth it": [], "Open": []}
        for row in _records(decisions[~decisions["id"].isin(UPKEEP)]):
            words, verdict = in_plain_words(row["contrast"]), row["verdict"]
            how = "" if verdict == "better" else f"; {_VERDICTS[verdict]}"
            told[_WORTH.get(verdict, "Open")].append(f"{words.judged} ({f'{signed(row)} {words.unit}'.rstrip()}{how})")
        lines += [f"**{worth}:** {'; '.join(judged)}." for worth, judged in told.items() if judged]
    lines += [_on_new_items(answers)]
    upkeep = [f"*{asked}* {first_sentence(answers[id]['answer'])}" for id, asked in UPKEEP.items() if id in answers]
    lines += [f"**Upkeep:** {' '.join(upkeep)}" if upkeep else ""]
    if decisions is not None:
        sure = f"{(decisions['p_holm'] <= FAMILY_ERROR).sum()} of {len(decisions)} deciding differences are not zero"
        lines += [f"**How sure:** {sure} after correction for all of them." + "".join(map(_repeats, beside.items()))]
    lines += [f"**Not claimed:** {LIMITS}"]
    return "\n".join(f"- {line}" for line in lines if line)


def _ships(metrics: pd.DataFrame, answers: Mapping[str, Mapping[str, Any]]) -> str:
    if "export" not in answers:
        return ""
    levels, texts = _standing(metrics, 1), []
    if "blend" in levels and "popularity" in levels:
        blend, popular = (f"{level(levels[model])}" for model in ("blend", "popularity"))
        texts.append(f"With whole histories, before variety, its ndcg@10 is {blend}, that of popularity {popular}")
        if alone := evidence(answers, "alpha-curve", r"ndcg@10, blend - EASE alone, ranking-last20"):
            texts[-1] += f" (EASE alone would do: the blend changes it by {signed(alone)})" if _same(alone) else ""
    gains = {order: evidence(answers, "alpha-curve", SHORT_PROFILES.format(order)) for order in ("random", "time")}
    if found := [f"{signed(row)} in {order} order" for order, row in gains.items() if row]:
        sizes = _sizes(next(filter(None, gains.values())))
        texts.append(f"with {sizes} ratings it gains {' and '.join(found)} on popularity")
    if loss := evidence(answers, "diversity-strategy", r"ndcg@10 of .*, relative change"):
        texts.append(f"variety changes ndcg@10 by {percent(loss)}")
    return f"**Ship** {_shipped(answers['export'])}. {'; '.join(texts)}{'.' * bool(texts)}"


def _sizes(row: Mapping[str, Any]) -> str:
    """The profile sizes that the name of an evidence row holds.

    >>> _sizes({"metric": "ndcg@10, learned - popularity, n=1-30, random order"})
    '1 to 30'
    """
    return re.sub(r".*n=(\d+)-(\d+),.*", r"\1 to \2", row["metric"])


def _on_new_items(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """What content does where no collaborative model has anything to say, which no primary contrast asks."""
    gain = evidence(answers, "cold-start", r"ndcg@10 on withheld items, blend - .+ alone")
    if not gain:
        return ""
    other = evidence(answers, "cold-start", r"ndcg@10 on withheld items, blend - content")
    beside = ""
    if other:
        equal = max(-other["ci_low"], other["ci_high"]) < 0.0005  # what three digits show as zero
        beside = "; content by itself " + (
            "does the same" if equal else f"differs from the blend by {signed(_reversed(other))}"
        )
    return f"**Items nobody has rated:** content changes the blend's ndcg@10 there by {signed(gain)}{beside}."


def _reversed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": 0 - row["value"], "ci_low": 0 - row["ci_high"], "ci_high": 0 - row["ci_low"]}  # no -0.0


def _shipped(export: Mapping[str, Any]) -> str:
    """The recommender that 10_export describes, without what it says of it."""
    name: str = first_sentence(export["answer"]).partition(", fitted on")[0].rstrip(".")
    return name[0].lower() + name[1:] if name.startswith("The ") else name


def _repeats(named: tuple[str, pd.DataFrame]) -> str:
    name, compared = named
    agree = compared["agree"].dropna().astype(bool)
    turned = [
        f"{in_plain_words(row['contrast_a']).judged} ({row['verdict_a']} here, {row['verdict_b']} there)"
        for row in _records(compared.loc[agree.index[~agree]])
    ]
    return f" {agree.sum()} of {len(agree)} verdicts repeat on {name}" + (
        f"; not: {'; '.join(turned)}." if turned else "."
    )


def evidence(answers: Mapping[str, Mapping[str, Any]], id: str, pattern: str) -> Mapping[str, Any] | None:
    """The first evidence row of a finding whose name fits the pattern."""
    rows = answers[id]["evidence"] if id in answers else []
    return next((row for row in rows if re.fullmatch(pattern, row["metric"])), None)


def _same(row: Mapping[str, Any]) -> bool:
    """A tie, as ``significance.verdict`` has it: an interval that holds 0 and is wider is no proof of sameness."""
    return bool(max(-row["ci_low"], row["ci_high"]) <= MARGIN)


# ---- the decisions


def decisions_table(
    decisions: pd.DataFrame, findings: Sequence[Mapping[str, Any]], metrics: pd.DataFrame,
    beside: Mapping[str, pd.DataFrame], link: str = "",
) -> str:  # fmt: skip
    """The decision table (see ``decisions``) as markdown, a row a question; ``link`` has a {} for the stage's name.

    Before the questions with a primary contrast stand the two that the title asks: what ships, and which track counts.
    """
    answers = {finding["id"]: finding for finding in findings}
    rows = [*_ship_row(metrics, answers), *_tracks_row(metrics, answers)]
    for id, part in decisions.groupby("id", sort=False):
        told = [(in_plain_words(row["contrast"]), row) for row in _records(part)]
        decided = [
            f"{words.measured}: **{signed(row)}**, n = {row['n']:,.0f}{_p(row['p_holm'], len(decisions))}"
            for words, row in told
        ]
        verdicts = [f"{words.judged} **{_VERDICTS[row['verdict']]}**" for words, row in told]
        first = part.iloc[0]
        others = [_elsewhere(compared[compared["id"] == id], list(part["contrast"])) for compared in beside.values()]
        rows.append(
            [str(id), first["question"], _briefly(first["answer"]), _stacked(decided), _stacked(verdicts), *others]
        )
    shown = []
    for id, question, answer, *cells in rows:
        stage = answers[id]["stage"] if id in answers else ""
        asked = f"[{question}]({link.format(stage)})" if link and stage else question
        shown.append([asked, answer, *cells, *["–"] * (2 + len(beside) - len(cells))])
    head = ["question", "answer in short", "decided by", "verdict", *(f"on {name}" for name in beside)]
    return pipe_table(head, shown)


def reading_decisions(decisions: pd.DataFrame) -> str:
    """What stands below the table: the sign, and the p value that most rows share."""
    floor = p_text(2 * len(decisions) / (RESAMPLES + 1), len(decisions))
    return (
        "Differences are signed so that more is better. Where no p is given it is "
        f"{floor}, the least that {RESAMPLES:,} resamples can show for {len(decisions)} contrasts together (Holm); a "
        "difference that *makes no difference that matters* may exist and is smaller than the margin."
    )


def _ship_row(metrics: pd.DataFrame, answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    if "export" not in answers:
        return []
    rows, decided, verdicts = _standing(metrics, 1), [], []
    if "blend" in rows and "popularity" in rows:
        decided.append(
            f"ndcg@10 (ranking-last20) of the blend **{level(rows['blend'])}**, of popularity "
            f"{level(rows['popularity'])}, n = {int(rows['blend']['n']):,}"
        )
    if gain := evidence(answers, "alpha-curve", SHORT_PROFILES.format("random")):
        decided.append(
            f"ndcg@10 (profile-size) of learned weights less popularity, {_sizes(gain)} ratings in random order: "
            f"**{signed(gain)}**, n = {gain['n']:,}"
        )
        verdicts.append(f"the blend **does {'better' if gain['ci_low'] > 0 else 'not do better'}** than popularity")
    export = answers["export"]
    name = _shipped(export)
    answer = f"{name[0].upper()}{name[1:]}."
    return [["export", export["question"], answer, _stacked(decided), _stacked(verdicts)]]


def _tracks_row(metrics: pd.DataFrame, answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Whether the model that errs least also ranks best, from the table of models."""
    errors, ranks = _standing(metrics, 0), _standing(metrics, 1)
    if "cf-ranking" not in answers or not errors or not ranks:
        return []
    least = min(errors, key=lambda model: float(errors[model]["value"]))
    top = max(ranks, key=lambda model: float(ranks[model]["value"]))
    same, its = least == top, ranks.get(least)
    decided = [f"lowest RMSE (rating-cv5): {MODELS[least]}, **{level(errors[least])}**"]
    decided += [f"its ndcg@10 (ranking-last20): **{level(its)}**"] if its else []
    decided += [f"highest ndcg@10: {MODELS[top]}, **{level(ranks[top])}**, n = {int(ranks[top]['n']):,}"]
    below = its and "popularity" in ranks and float(its["value"]) < float(ranks["popularity"]["value"])
    answer = (
        "Here it does." if same else
        f"No: {MODELS[least]} errs least and ranks below {'popularity' if below else MODELS[top]}."
    )  # fmt: skip
    verdict = f"rating error **{'agrees with' if same else 'does not tell'}** which list is best"
    return [["cf-ranking", answers["cf-ranking"]["question"], answer, _stacked(decided), verdict]]


def _elsewhere(compared: pd.DataFrame, contrasts: Sequence[str]) -> str:
    cells = []
    for row in _records(compared[compared["contrast_a"].isin(contrasts)]):
        if not isinstance(row["verdict_b"], str):
            cells.append("not asked")
            continue
        value = signed({name: row[f"{name}_b"] for name in ("value", "ci_low", "ci_high")})
        turned = "same" if row["agree"] else f"**differs**: {_VERDICTS[row['verdict_b']]}"
        cells.append(f"{turned}, {value}")
    return _stacked(cells)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _standing(metrics: pd.DataFrame, track: int) -> dict[str, dict[str, Any]]:
    """By model, the row of :func:`headline_rows` in a track: 0 rating error, 1 ranking."""
    return {row["model"]: row for row in _records(headline_rows(metrics)) if row["protocol"] == HEADLINE[track][0]}


def _stacked(lines: Sequence[str]) -> str:
    return lines[0] if len(lines) == 1 else "<br>".join(f"• {line}" for line in lines)


def _briefly(answer: str) -> str:
    """An answer without the intervals that stand beside it in the table.

    >>> _briefly("No: it changes by -0.013 [-0.018, -0.008] at weight (.1) (worse; 0.193 [0.180, 0.207] without).")
    'No: it changes by -0.013 at weight (.1).'
    """
    return re.sub(r"\s*\([^()]*(?:\[|detectable)[^()]*\)|\s*\[[^\[\]]*[\d%]\]", "", answer)


def _p(p: float, tests: int) -> str:
    told = p_text(p, tests)
    return "" if told.startswith("<=") else f", p {told}"


# ---- models side by side


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
    cells = {(row["model"], row["protocol"]): level(row) for row in _records(rows)}
    lines = [
        [title, *(cells.get((model, column[0]), "") for column in HEADLINE)]
        for model, title in MODELS.items()
        if model in set(rows["model"])
    ]
    return pipe_table(["model", *(column[2] for column in HEADLINE)], lines)


def words_used(protocols: str, confidence: str) -> str:
    """How to read the tables, as a markdown list; the arguments are links to where protocols and confidence stand."""
    return "\n".join(f"- **{w}**: {t.format(protocols=protocols, confidence=confidence)}" for w, t in WORDS.items())


# ---- numbers and tables as text


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; columns of numbers stand to the right.

    >>> print(pipe_table(["a", "b"], [["x|y", "1.2"]]))
    | a | b |
    | --- | ---: |
    | x\\|y | 1.2 |
    """
    align = ["---:" if are_numbers([row[place] for row in rows]) else "---" for place in range(len(head))]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(head), align, *escaped])


def are_numbers(cells: Sequence[str]) -> bool:
    """Whether most of a column's cells that hold anything begin like a number.

    >>> are_numbers(["+0.1 [0, 1]", "", "never", "3"]), are_numbers(["EASE", "2 of 3"])
    (True, False)
    """
    found = [bool(re.match(r"(<=? ?|[+−-])?[\d.]", cell)) for cell in cells if cell]
    return 2 * sum(found) > len(found)


def number(value: Any) -> str:
    """
    >>> number("0.123456"), number(12), number(1234.5), number(-0.0001)
    ('0.123', '12', '1,234.5', '0.000')
    """
    number = float(value)
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:z.3f}" if abs(number) < 100 else f"{number:,.1f}"


def interval(low: Any, high: Any, sign: str = "") -> str:
    """
    >>> interval(0.1, 0.25), interval(-0.1, 0.25, sign="+"), interval(3, 3)
    ('[0.100, 0.250]', '[-0.100, +0.250]', 'no spread')
    """
    if low == high:
        return "no spread"
    return f"[{float(low):+.3f}, {float(high):+.3f}]" if sign else f"[{number(low)}, {number(high)}]"


def level(row: Mapping[str, Any]) -> str:
    """Value and interval of a row with value, ci_low and ci_high."""
    return f"{number(row['value'])} {interval(row['ci_low'], row['ci_high'])}"


def signed(row: Mapping[str, Any]) -> str:
    """:func:`level` of a difference, with its sign."""
    return f"{float(row['value']):+.3f} {interval(row['ci_low'], row['ci_high'], sign='+')}"


def percent(row: Mapping[str, Any]) -> str:
    """
    >>> percent({"value": -0.014, "ci_low": -0.03, "ci_high": 0.002})
    '-1.4% [-3.0%, +0.2%]'
    """
    return f"{row['value']:+.1%} [{row['ci_low']:+.1%}, {row['ci_high']:+.1%}]"
