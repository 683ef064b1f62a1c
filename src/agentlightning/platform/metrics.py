"""What Prometheus is told of requests. Labels are routes, never paths, so that nobody can make up new ones."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})


class Metrics:
    """Of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests_total", "Requests answered.", ["method", "endpoint", "status_code"], registry=self.registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds", "Time to answer.", ["method", "endpoint"], registry=self.registry
        )
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

        self.tasks = Counter("agent_requests_total", "Tasks ended.", ["agent_id", "status"], registry=self.registry)
        self.task_seconds = Histogram(
            "agent_response_time_seconds",
            "From a task's start to its end.",
            ["agent_id"],
            registry=self.registry,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
        )
        self.active_agents = Gauge("agent_active_count", "Active agents.", ["type"], registry=self.registry)
        self.queued_tasks = Gauge("agent_tasks_queued", "Tasks that could start now.", registry=self.registry)
        self.running_tasks = Gauge("agent_tasks_running", "Tasks at work in this process.", registry=self.registry)
        self.task_workers = Gauge("agent_pool_workers", "Room for tasks in this process.", registry=self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        known = method if method in _METHODS else "OTHER"
        kept = self._counters.get((known, route, status))
        if kept is None:
            kept = self._requests.labels(known, route, str(status)), self._seconds.labels(known, route)
            self._counters[known, route, status] = kept
        kept[0].inc()
        kept[1].observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
