"""Count and time what the server does, for Prometheus; each application has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODEL = ("model",)


class Metrics:
    """Hold the server's metrics; all are labelled by model."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "sparsify_requests", "Requests, by outcome", ("model", "outcome"), registry=registry
        )  # sparsify_requests_total
        self.seconds = Histogram(
            "sparsify_request_seconds",
            "From a request's headers to its answer",
            MODEL,
            buckets=SECONDS,
            registry=registry,
        )
        self.queued = Histogram(
            "sparsify_queue_seconds", "From a request's body to its batch", MODEL, buckets=SECONDS, registry=registry
        )
        self.rows = Histogram("sparsify_batch_rows", "Rows in a batch", MODEL, buckets=ROWS, registry=registry)
        self.batched = Histogram(
            "sparsify_batch_requests", "Requests in a batch", MODEL, buckets=ROWS, registry=registry
        )
        self.in_flight = Gauge("sparsify_requests_in_flight", "Requests being read or run", MODEL, registry=registry)
        self.loads = Counter(
            "sparsify_model_loads", "Loads of a model's files", ("model", "outcome"), registry=registry
        )
        self.loaded = Gauge(
            "sparsify_model_loaded_timestamp_seconds", "When the files in use were loaded", MODEL, registry=registry
        )
        self.stale = Gauge(
            "sparsify_model_stale", "1 where the files have changed and do not load", MODEL, registry=registry
        )
        self.info = Gauge(
            "sparsify_model_info", "1 for each model", ("model", "runtime", "use_case"), registry=registry
        )
