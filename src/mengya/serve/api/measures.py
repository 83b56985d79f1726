"""Figures for Prometheus."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mengya.infer.backends import Backend

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Measures:
    """Of one server: its own registry, so that two in one process do not mix."""

    def __init__(self, models: Mapping[str, Backend]):
        self._registry = CollectorRegistry()
        self.requests = Counter("mengya_requests", "Requests", ["route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "mengya_request_seconds", "Whole requests", ["route"], buckets=_WHOLE, registry=self._registry
        )
        self.first_token = Histogram(
            "mengya_first_token_seconds",
            "From a request to the first piece of its answer",
            ["model"],
            buckets=_FIRST,
            registry=self._registry,
        )
        self.tokens = Counter("mengya_tokens", "Tokens", ["model", "kind"], registry=self._registry)
        self._registry.register(_Loads(models))
        ProcessCollector(registry=self._registry)  # memory and open files, where the system tells them

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)


class _Loads(Collector):
    """How busy the backends are, asked when the figures are."""

    def __init__(self, models: Mapping[str, Backend]):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "running": GaugeMetricFamily("mengya_running", "Answers that are computed", labels=["model"]),
            "waiting": GaugeMetricFamily("mengya_waiting", "Answers that wait", labels=["model"]),
            "blocks": GaugeMetricFamily("mengya_blocks", "Blocks of keys and values", labels=["model"]),
            "free_blocks": GaugeMetricFamily("mengya_blocks_free", "Those that are free", labels=["model"]),
        }
        for name, backend in self._models.items():
            load = backend.load()
            for field, gauge in gauges.items():
                gauge.add_metric([name], getattr(load, field))
        yield from gauges.values()
