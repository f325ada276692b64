"""Who may ask: other hosts' names, other pages, tokens, rates, sizes and slow bodies."""

import base64
import json

import pytest

from ldm.web.application import PAGE_PATHS, make_application
from ldm.web.caps import Caps
from ldm.web.guard import COOKIE, Guard, RateLimit
from ldm.web.queue import Job
from tests.support.tiny_web import Answer, call, make_service

TOKEN = "correct-horse-battery"
ASK = {"prompt": "a"}


@pytest.fixture
def open_guard() -> Guard:
    return make_application(make_service())


@pytest.fixture
def closed_guard() -> Guard:
    return make_application(make_service(), token=TOKEN)


def jobs(guard: Guard) -> list[Job]:
    found: list[Job] = list(guard.app.state.service.queue._jobs.values())  # type: ignore[attr-defined]
    return found


# Names and origins


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "[::1]:7860", "127.0.0.2"])
def test_this_machines_own_names_are_answered(open_guard: Guard, host: str) -> None:
    assert call(open_guard, "/health", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "", "[::1", "localhost.evil"]
)
def test_other_names_are_refused(open_guard: Guard, host: str) -> None:
    answer = call(open_guard, "/ldm/jobs", body=ASK, headers={"host": host})
    assert answer.status == 403 and "open it as 127.0.0.1" in answer.error
    assert not jobs(open_guard)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1234"},
        {"origin": "null"},
        {"origin": "http://[bad"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/ldm/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/interrupt"]
)
def test_requests_of_other_pages_are_refused(open_guard: Guard, path: str, headers: dict[str, str]) -> None:
    answer = call(open_guard, path, body=ASK, headers=headers)
    assert answer.status == 403 and "another page" in answer.error
    assert not jobs(open_guard)


def test_a_public_server_answers_to_every_name_and_may_stand_in_a_frame() -> None:
    guard = make_application(make_service(), public=True)
    answer = call(
        guard, "/ldm/jobs", body=ASK, headers={"host": "ann.hf.space", "origin": "https://ann.hf.space"}
    )
    assert answer.status == 202 and "x-frame-options" not in answer.headers
    assert "frame-ancestors *" in answer.headers["content-security-policy"]
    other = call(
        guard, "/ldm/jobs", body=ASK, headers={"host": "ann.hf.space", "origin": "https://evil.example"}
    )
    assert other.status == 403


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", "6.6.6.6, 93.184.216.34", "93.184.216.34"),  # the proxy adds to what a client claims
        ("93.184.216.34", "10.1.1.1", "93.184.216.34"),  # no proxy of ours
        ("10.0.0.9", "not an address", "10.0.0.9"),
        ("10.0.0.9", "", "10.0.0.9"),
    ],
)
def test_behind_a_proxy_each_visitor_is_a_client(peer: str, forwarded: str, client: str) -> None:
    guard = make_application(make_service(), public=True)
    call(guard, "/ldm/jobs", body=ASK, address=peer, headers={"x-forwarded-for": forwarded})
    (job,) = jobs(guard)
    assert job.client == client


def test_elsewhere_a_forwarded_address_counts_for_nothing(open_guard: Guard) -> None:
    call(open_guard, "/ldm/jobs", body=ASK, headers={"x-forwarded-for": "93.184.216.34"})
    assert jobs(open_guard)[0].client.startswith("127.0.0.1")


def test_the_own_page_and_programs_may_ask(open_guard: Guard) -> None:
    own = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert call(open_guard, "/ldm/jobs", body=ASK, headers=own).status == 202
    assert call(open_guard, "/ldm/jobs", body=ASK).status == 202
    assert len(jobs(open_guard)) == 2


def test_answers_forbid_frames_foreign_scripts_and_caches(open_guard: Guard) -> None:
    for answer in (call(open_guard, "/"), call(open_guard, "/nowhere"), call(open_guard, "/ldm/form")):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not {"server", "access-control-allow-origin"} & set(answer.headers)


# Tokens


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": basic(TOKEN)},
        {"cookie": f"other=1; {COOKIE}={TOKEN}"},
        {"authorization": f"Bearer {TOKEN}", "host": "my-server.example:7860"},
    ],
)
def test_the_token_opens(closed_guard: Guard, headers: dict[str, str]) -> None:
    assert call(closed_guard, "/ldm/form", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": basic("")},
        {"authorization": "Basic ???"},
        {"authorization": "Basic /w=="},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": "\x7f=;;;"},
        {"authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_it_nothing_opens(closed_guard: Guard, headers: dict[str, str]) -> None:
    for path in (
        "/ldm/form",
        "/sdapi/v1/sd-models",
        "/v1/models",
        "/openapi.json",
        "/health",
        "/static/page.js",
    ):
        assert call(closed_guard, path, headers=headers).status == 401
    assert call(closed_guard, "/ldm/jobs", body=ASK, headers=headers).status == 401
    assert not jobs(closed_guard)


def test_a_browser_is_sent_to_the_form_and_gets_a_cookie(closed_guard: Guard) -> None:
    sent = call(closed_guard, "/", headers={"accept": "text/html,*/*"})
    assert (sent.status, sent.headers["location"]) == (303, "/login")
    assert b"password" in call(closed_guard, "/login").body
    assert login(closed_guard, "wrong").status == 401
    answer = login(closed_guard, TOKEN)
    assert answer.status == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    opened = call(closed_guard, "/", headers={"cookie": cookie.partition(";")[0]})
    assert opened.status == 200 and b"OpenLDM" in opened.body


def login(guard: Guard, token: str) -> Answer:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    return call(guard, "/login", body=f"token={token}".encode(), headers=kind)


def test_tokens_cannot_be_tried_at_will(closed_guard: Guard) -> None:
    wrong = {"authorization": "Bearer wrong"}
    statuses = [call(closed_guard, "/ldm/form", headers=wrong).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert login(closed_guard, TOKEN).status == 429
    right = {"authorization": f"Bearer {TOKEN}"}
    assert call(closed_guard, "/ldm/form", headers=right).status == 200
    assert call(closed_guard, "/ldm/form", headers=wrong, address="10.0.0.9").status == 401


# Whose turn it is


@pytest.mark.parametrize(
    ("address", "headers", "client"),
    [
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.1", {"x-client": "page"}, "127.0.0.1 page"),
        ("127.0.0.1", {"authorization": basic("x")}, "127.0.0.1 anyone"),
        ("127.0.0.1", {"authorization": "Basic /w=="}, "127.0.0.1"),
        ("10.0.0.9", {"x-client": "one"}, "10.0.0.9"),
        ("10.0.0.9", {"x-client": "two", "authorization": basic("x")}, "10.0.0.9"),
    ],
)
def test_other_machines_get_no_more_turns_by_other_names(
    open_guard: Guard, address: str, headers: dict[str, str], client: str
) -> None:
    assert call(open_guard, "/ldm/jobs", body=ASK, headers=headers, address=address).status == 202
    assert [job.client for job in jobs(open_guard)] == [client]


def test_several_jobs_are_looked_at_together(open_guard: Guard) -> None:
    first, second = (call(open_guard, "/ldm/jobs", body=ASK).json["id"] for _ in range(2))
    found = call(open_guard, f"/ldm/jobs?ids={second},unknown,{first}").json["jobs"]
    assert [job["id"] for job in found] == [second, first]
    assert len(call(open_guard, "/ldm/jobs").json["jobs"]) == 2


# Amounts


def test_an_address_has_a_rate_and_others_are_not_affected() -> None:
    guard = make_application(make_service(Caps(burst=5, requests_per_sec=0.001)))
    assert [call(guard, "/health").status for _ in range(7)] == [200] * 5 + [429] * 2
    assert call(guard, "/health", address="::1").status == 200


def test_the_addresses_that_are_remembered_are_bounded() -> None:
    limit = RateLimit(1.0, 5)
    for number in range(11_000):
        limit.take(str(number))
    assert len(limit._buckets) == 10_000


SMALL = Caps(request_bytes=2**20, body_sec=0.05)


@pytest.mark.parametrize(
    ("headers", "body", "keep_sending", "status"),
    [
        ({"content-length": str(2**21)}, b"", False, 413),
        ({"content-length": "9" * 30}, b"", False, 400),
        ({"content-length": "-1"}, b"", False, 400),
        ({}, bytes(2**20 + 1), True, 413),
        ({}, b'{"prompt":', True, 408),
    ],
)
def test_bodies_are_bounded_in_size_and_time(
    headers: dict[str, str], body: bytes, keep_sending: bool, status: int
) -> None:
    guard = make_application(make_service(SMALL))
    answer = call(guard, "/ldm/jobs", body=body, headers=headers, keep_sending=keep_sending)
    assert answer.status == status
    assert "\n" not in answer.error and guard._arriving_bytes == 0


def test_all_bodies_together_are_bounded() -> None:
    guard = make_application(make_service(Caps(arriving_bytes=10)))
    answer = call(guard, "/ldm/jobs", body=ASK)
    assert answer.status == 503 and guard._arriving_bytes == 0


def test_the_token_is_asked_for_before_the_body_is_read(closed_guard: Guard) -> None:
    answer = call(closed_guard, "/ldm/jobs", body=b"x", keep_sending=True)
    assert answer.status == 401


# The shape of errors


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/ldm/jobs/unknown", "/static/../page.html", "/static/%2e%2e"]
)
def test_errors_are_json_of_one_line(open_guard: Guard, path: str) -> None:
    answer = call(open_guard, path)
    assert answer.status == 404
    assert set(answer.json["error"]) == {"message", "type", "param", "code"} and "\n" not in answer.error


@pytest.mark.parametrize("path", ["/ldm/jobs/x/images/{}.png", "/ldm/runs/{}", "/{}"])
def test_a_path_with_thousands_of_digits_is_an_error_of_the_client(open_guard: Guard, path: str) -> None:
    answer = call(open_guard, path.format("9" * 5000))
    assert answer.status == 414 and len(answer.error) < 100


def test_errors_below_sdapi_have_its_shape(open_guard: Guard) -> None:
    answer = call(open_guard, "/sdapi/v1/txt2img", body={"prompt": "a", "steps": "many"})
    assert answer.status == 400
    assert (
        answer.json["detail"] == "num_inference_steps is 'many': it must be a whole number from 1 to 100000"
    )
    assert set(answer.json) == {"error", "detail", "body", "errors"}


def test_every_route_is_in_the_openapi_document(closed_guard: Guard) -> None:
    text = call(closed_guard, "/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).body
    document = json.loads(text)
    paths = document["paths"]
    for route in closed_guard.app.routes:  # type: ignore[attr-defined]
        if route.path not in PAGE_PATHS:
            operations = paths[route.path.replace(":int", "")]
            assert set(operations) >= {method.lower() for method in route.methods - {"HEAD"}}
    assert "guidance_scale" in document["components"]["schemas"]["Settings"]["properties"]
    for each in set(text.decode().split('"#/components/schemas/')[1:]):
        assert each.partition('"')[0] in document["components"]["schemas"]
    assert document["security"] == [{"bearer": []}, {"basic": []}]
