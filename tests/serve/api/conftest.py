import pytest

pytest.importorskip("fastapi", reason='serving needs pip install "mengya[serve]"')
pytest.importorskip("uvicorn", reason='serving needs pip install "mengya[serve]"')
pytest.importorskip("prometheus_client", reason='serving needs pip install "mengya[serve]"')
pytest.importorskip("httpx", reason="the tests ask with httpx")

from mengya.serve.api.settings import Limits, Settings

from .scripted import Answer, Live, Scripted


@pytest.fixture
def serving():
    """serving(answer or backends, limits={…}, **settings) -> Live, stopped when the test ends."""
    running = []

    def start(*given: Answer | Scripted, limits: dict | None = None, **settings) -> Live:
        backends = [each if isinstance(each, Scripted) else Scripted(each) for each in given] or [Scripted()]
        live = Live(Settings(models={each.name: each for each in backends}, limits=Limits(**limits or {}), **settings))
        running.append(live)
        return live

    yield start
    for live in running:
        live.stop()


@pytest.fixture(scope="module")
def plain():
    """A server with one backend that says hello; shared, so only for tests that do not count."""
    live = Live(Settings(models={"sprout": Scripted()}))
    yield live
    live.stop()
