"""Requests made up from the server's own description: none is a fault of the server, none hangs.

pytest tests/serve/api/test_schema.py --api-requests 2000
"""

import warnings

import pytest

from mengya.infer.request import Request

from .scripted import Live, Say, Scripted, error_of

POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/ai/llm/generation", "/ai/llm/generation_stream"]
GETS = ["/v1/models", "/v1/models/{model}", "/health", "/metrics"]


def answer(request: Request, choice: int) -> list[Say]:
    return [Say("春"), Say("天")] if request.n < 9 else []


@pytest.fixture
def live(serving) -> Live:
    return serving(Scripted(answer), any_name=True, embed_ids=True, grammar_for=lambda backend, schema: lambda: None)


def test_the_description_is_complete(live):
    described = live.http.get("/openapi.json").json()
    assert sorted(described["paths"]) == sorted([*POSTS, *GETS])
    assert "422" not in str(
        {path: list(of["responses"]) for paths in described["paths"].values() for path, of in paths.items()}
    )
    bodies = described["components"]["schemas"]
    assert "max_completion_tokens" in bodies["ChatBody"]["properties"] and "ErrorReply" in bodies


def test_made_up_requests(live, pytestconfig):
    hypothesis = pytest.importorskip("hypothesis")
    schemathesis = pytest.importorskip("schemathesis")
    total = pytestconfig.getoption("--api-requests")
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == len(POSTS) + len(GETS)
    statuses: dict[int, int] = {}

    def ask(case) -> None:
        case.headers["connection"] = "close"
        response = case.call(timeout=60)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            body = response.json()
            assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}

    for operation in operations:
        share = total * 9 // 10 // len(POSTS) if operation.path in POSTS else total // 10 // len(GETS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                if mode is schemathesis.GenerationMode.NEGATIVE and operation.path not in POSTS:
                    continue
                strategy = operation.as_strategy(generation_mode=mode)
                settings = hypothesis.settings(
                    max_examples=max(1, share // 2),
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                settings(hypothesis.given(strategy)(ask))()
    assert sum(statuses.values()) >= total // 2 and statuses[200] and statuses[400], statuses
    print(statuses)
    assert live.chat().status_code == 200
    assert error_of(live.http.get("/nothing"))["code"] == "not_found"
