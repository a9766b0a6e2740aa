"""TMDB's API as a local server plays it: answers, refusals, pauses, broken connections, and what is kept of them."""

from __future__ import annotations

import datetime
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from recsys_study import cli
from recsys_utils.base import InputError
from recsys_utils.data.catalogue import Facts
from recsys_utils.personal import film_facts as providers

SECRET = "eyJhbGciOi.JIUzI1-NiJ9_secret"
TODAY = datetime.date(2026, 5, 1)
FILM = {
    "id": 862,
    "genres": [{"id": 16, "name": "Animation"}],
    "overview": "A cowboy doll.",
    "keywords": {"keywords": [{"id": 1, "name": "jealousy"}]},
    "credits": {
        "cast": [{"name": "Tim Allen", "order": 1}, {"name": "Tom Hanks", "order": 0}],
        "crew": [{"name": "John Lasseter", "job": "Director"}, {"name": "Joss Whedon", "department": "Writing"}],
    },
}
FIELDS = {
    "genres": ["Animation"],
    "keywords": ["jealousy"],
    "overview": "A cowboy doll.",
    "actors": ["Tom Hanks", "Tim Allen"],
    "directors": ["John Lasseter"],
    "writers": ["Joss Whedon"],
}
Answer = tuple[int, dict[str, str], bytes]


def ok(film: object = FILM) -> Answer:
    return 200, {}, json.dumps(film).encode()


def status(code: int, **headers: str) -> Answer:
    return code, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}"


CUT = (200, {"Content-Length": "4000"}, b'{"id": 862')  # promises more than comes, then hangs up
SLOW = (0, {}, b"")
MALFORMED = (200, {}, b'{"id": 862, ')


@dataclass
class Service:
    """A server that gives the scripted answers of a film in turn, the last one for ever; sleeping moves its clock."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    authorised: set[str] = field(default_factory=set, repr=False)
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def api(self, timeout: float = 5.0) -> providers.TmdbApi:
        return providers.TmdbApi(SECRET, url=self.url, sleep=self.sleep, clock=lambda: self.now, timeout=timeout)

    def pauses(self) -> list[float]:
        """What was waited beyond the spacing of requests."""
        return [s for s in self.slept if s > 1 / providers.PER_SECOND + 1e-9]


@pytest.fixture
def service() -> Iterator[Service]:
    played = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, or each answer waits for an acknowledgement

        def do_GET(self) -> None:
            number = self.path.split("?")[0].rsplit("/", 1)[-1]
            played.asked.append(self.path)
            played.times.append(played.now)
            played.authorised.add(self.headers["Authorization"] or "")
            script = played.answers.get(number, [ok()])
            code, headers, body = script.pop(0) if len(script) > 1 else script[0]
            if code == 0:
                played.release.wait(5)
                self.close_connection = True
                return
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = "Content-Length" in headers

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    played.url = f"http://127.0.0.1:{server.server_port}/3"
    yield played
    played.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(service: Service, tmp_path: Path) -> Callable[..., tuple[Facts, list[str]]]:
    def facts(*numbers: str, today: datetime.date = TODAY, timeout: float = 5.0) -> tuple[Facts, list[str]]:
        return providers.tmdb_facts(
            numbers, tmp_path / "interim" / "tmdb.sqlite", service.api(timeout), today=today, say=lambda text: None
        )

    return facts


Ask = Callable[..., tuple[Facts, list[str]]]


def films(told: Facts) -> dict[str, dict[str, object]]:
    return {str(row.pop("tmdb_id")): row for row in told.table.to_dict("records")}


def test_a_film_is_asked_for_with_credits_and_keywords_and_read_like_tmdbs_tables(ask: Ask, service: Service) -> None:
    told, notes = ask("862", "862")
    assert [unquote(path) for path in service.asked] == ["/3/movie/862?append_to_response=credits,keywords"]
    assert service.authorised == {f"Bearer {SECRET}"}
    assert films(told) == {"862": FIELDS}
    assert (told.source.snapshot, told.source.may_redistribute, told.ordered) == ("2026-05-01", False, True)
    [notice] = notes
    assert notice.startswith("This product uses the TMDB API but is not endorsed or certified by TMDB.")
    assert "six months" in notice
    assert "machine learning" in notice


def test_known_films_and_known_gaps_are_not_asked_for_again(ask: Ask, service: Service) -> None:
    service.answers["5"] = [status(404)]
    first, _ = ask("862", "5")
    again, notes = ask("862", "5")
    assert len(service.asked) == 2
    assert films(first) == films(again) == {"862": FIELDS}
    assert len(notes) == 1, "a film TMDB does not know is no failure"


def test_what_is_older_than_the_terms_allow_is_dropped_and_fetched_anew(
    ask: Ask, service: Service, tmp_path: Path
) -> None:
    ask("862", "7")
    last = TODAY + providers.KEEP
    ask("862", today=last)
    assert len(service.asked) == 2, "on the last day the copy may still be used"
    told, _ = ask("862", today=last + datetime.timedelta(days=1))
    assert len(service.asked) == 3
    assert told.source.snapshot == (last + datetime.timedelta(days=1)).isoformat()
    store = providers._open_cache(tmp_path / "interim" / "tmdb.sqlite", TODAY)
    assert store.execute("SELECT tmdb_id FROM film").fetchall() == [("862",)], (
        "film 7, no longer asked for, is gone too"
    )
    store.close()
    assert (tmp_path / "interim" / "tmdb.sqlite").read_bytes().count(b"A cowboy doll.") == 1, "and overwritten"


@pytest.mark.parametrize("trouble", [status(500), status(503), CUT, MALFORMED, (200, {}, b"[1]"), ok({"credits": [1]})])
def test_a_passing_trouble_is_tried_again_with_growing_pauses(ask: Ask, service: Service, trouble: Answer) -> None:
    service.answers["862"] = [trouble, trouble, ok()]
    told, notes = ask("862")
    assert films(told) == {"862": FIELDS}
    assert (len(service.asked), len(notes)) == (3, 1)
    assert service.pauses() == [0.5, 1.0]


def test_a_service_that_does_not_answer_is_asked_again(ask: Ask, service: Service) -> None:
    service.answers["862"] = [SLOW, ok()]
    told, _ = ask("862", timeout=0.2)
    assert films(told) == {"862": FIELDS}


@pytest.mark.parametrize(("header", "waited"), [("7", 7.0), ("0", None), ("", 0.5), ("soon", 0.5)])
def test_too_many_requests_wait_as_long_as_they_are_told(
    ask: Ask, service: Service, header: str, waited: float | None
) -> None:
    service.answers["862"] = [status(429, Retry_After=header), ok()]
    assert films(ask("862")[0]) == {"862": FIELDS}
    assert service.pauses() == ([] if waited is None else [waited])


def test_retry_after_may_be_a_date() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    assert providers._seconds(soon.strftime("%a, %d %b %Y %H:%M:%S GMT")) == pytest.approx(60, abs=3)
    assert providers._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_tries_are_limited_and_the_other_films_still_come(ask: Ask, service: Service) -> None:
    service.answers["1"] = [status(500)]
    told, notes = ask("1", "862")
    assert len(service.asked) == providers.TRIES + 1
    assert list(films(told)) == ["862"]
    assert "could not be asked about 1 of 2 films (last: HTTP 500)" in notes[1]


@pytest.mark.parametrize("trouble", [status(502), status(429, Retry_After="86400"), status(301, Location="/other")])
def test_a_service_that_is_away_is_left_alone_and_what_came_is_kept(
    ask: Ask, service: Service, trouble: Answer
) -> None:
    service.answers |= {str(n): [trouble] for n in range(1, 60)}
    told, notes = ask("862", *map(str, range(1, 60)))
    assert list(films(told)) == ["862"]
    per_film = providers.TRIES if trouble[0] == 502 else 1
    assert len(service.asked) == 1 + providers.GIVE_UP * per_film, "no waiting a day, no following elsewhere"
    assert f"about 59 of 60 films (last: HTTP {trouble[0]})" in notes[1]
    assert "--force 01_ingest" in notes[1]
    service.answers.clear()
    service.asked.clear()
    again, notes = ask("862", *map(str, range(1, 60)))
    assert (len(films(again)), len(service.asked), len(notes)) == (60, 59, 1)


def test_nothing_listens_at_all(ask: Ask, service: Service) -> None:
    service.url = "http://127.0.0.1:9/3"  # the discard port: refused
    told, notes = ask("862", "5")
    assert told.table.empty
    assert "about 2 of 2 films (last: ConnectError)" in notes[1]


def test_an_interrupted_run_goes_on_where_it_was(ask: Ask, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    film = providers.TmdbApi.film

    def until_three(self: providers.TmdbApi, number: str) -> providers.Film | None:
        if number == "3":
            raise KeyboardInterrupt
        return film(self, number)

    monkeypatch.setattr(providers.TmdbApi, "film", until_three)
    with pytest.raises(KeyboardInterrupt):
        ask("1", "2", "3", "4")
    monkeypatch.undo()
    ask("1", "2", "3", "4")
    assert [path.split("?")[0][-1] for path in service.asked] == ["1", "2", "3", "4"]


def test_never_more_than_twenty_requests_in_any_second(ask: Ask, service: Service) -> None:
    service.answers["7"] = [status(500), status(429, Retry_After="0"), ok()]
    ask(*map(str, range(1, 60)))
    times = service.times
    assert len(times) == 61
    assert all(late - early >= 1 - 1e-6 for early, late in zip(times, times[providers.PER_SECOND :], strict=False))


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_token_stops_at_once(ask: Ask, service: Service, code: int) -> None:
    service.answers["862"] = [status(code)]
    with pytest.raises(InputError, match=rf"TMDB refuses the token in TMDB_BEARER_TOKEN \(HTTP {code}\)"):
        ask("862", "5")
    assert len(service.asked) == 1


def test_the_token_is_nowhere_but_in_the_request(
    ask: Ask, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers |= {"1": [status(500)], "2": [CUT], "3": [MALFORMED], "4": [ok()], "5": [status(401)]}
    with caplog.at_level(logging.DEBUG):
        _, notes = ask("4", "1", "2")
        with pytest.raises(InputError) as refused:
            ask("5")
        with pytest.raises(providers.Unavailable) as failed:
            service.api().film("3")
    seen = [*notes, str(refused.value), repr(failed.value), repr(failed.value.__cause__), repr(service.api())]
    seen += [caplog.text, *capsys.readouterr()]
    assert "HTTP Request" in caplog.text, "the log was listened to"
    assert not [text for text in seen if SECRET in text]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("value", "says"), [(None, "is not set"), ("  ", "is not set"), ("a b\nc", "holds characters")]
)
def test_no_token_is_said_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, value: str | None, says: str
) -> None:
    monkeypatch.delenv(providers.TMDB_TOKEN, raising=False)
    if value is not None:
        monkeypatch.setenv(providers.TMDB_TOKEN, value)
    with pytest.raises(InputError, match=f"the environment variable TMDB_BEARER_TOKEN {says}") as error:
        providers.tmdb_token()
    assert "a b" not in str(error.value)
    command = ["run", "params/ml-100k.yaml", "--only", "01_ingest", "--set", "dataset.catalogue=[tmdb]"]
    done = CliRunner().invoke(cli.app, [*command, "--name", "tmdb-refused"])
    assert isinstance(done.exception, InputError)
    assert "environment variable TMDB_BEARER_TOKEN" in str(done.exception)


def test_surrounding_blanks_of_a_token_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(providers.TMDB_TOKEN, f" {SECRET}\n")
    assert providers.tmdb_token() == SECRET


def test_films_without_an_id_are_said(ask: Ask) -> None:
    with pytest.raises(InputError, match=r"no film has a TMDB id; dataset\.links=FILE\.zip"):
        ask()


def test_a_cache_that_is_none_is_named(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "interim").mkdir()
    (tmp_path / "interim" / "tmdb.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(InputError, match=r"tmdb\.sqlite can't be used .* delete it"):
        ask("862")
