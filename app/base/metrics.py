"""What the service counts about itself, in Prometheus' terms.

Values of labels come from the configuration and from our own code, never from a request: nobody
outside can make series. Several worker processes each count in a file of their own, and whichever
is asked adds them up; see `share_between_workers`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.base.errors import AuditUnavailable, InvalidRequest, Problem, UpstreamProblem

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of `Metrics.exposition`."""

OUTCOMES = ("issued", "denied", "failed", "unknown", "invalid", "unrecorded")
"""Of a mint: as the log has it; or the wish could not be read, or the log could not be written."""

Queue = Literal["mint", "log"]
"""Mints that wait for a place; rows that wait until they are on disk."""

PREFIX = "realtime_tokens"

# Seconds. A wait is mostly nothing; a mint at OpenAI takes some tenths and is given up after 8.
_WAITING = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_APPENDING = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_ASKING = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)

# The package's own name. It looks at it when it is imported, so workers have to inherit it.
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, and not one that workers could add up


class Metrics:
    """Counters and gauges of this process, or of all workers together."""

    def __init__(self) -> None:
        self._folder = os.environ.get(_FOLDER)
        self._shown = CollectorRegistry()
        # With workers, what is shown is read from the files of all, this process' among them.
        own = CollectorRegistry() if self._folder else self._shown
        if self._folder:
            MultiProcessCollector(self._shown, self._folder)  # type: ignore[no-untyped-call]  # it has no annotations

        self._mints = Counter(
            f"{PREFIX}_mints",
            "Mints that were admitted, by profile (empty: no such profile) and outcome.",
            ["profile", "outcome"],
            registry=own,
        )
        self.mints_in_flight = Gauge(
            f"{PREFIX}_mints_in_flight",
            "Mints that have a place now.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.limits_hit = Counter(
            f"{PREFIX}_limits_hit",
            "Requests refused because of a limit, by the setting that sets it.",
            ["limit"],
            registry=own,
        )
        self.limits_degraded = Gauge(
            f"{PREFIX}_limits_degraded",
            "1 while Redis is away and each process counts for itself.",
            multiprocess_mode="livemax",
            registry=own,
        )
        self.log_append = Histogram(
            f"{PREFIX}_log_append_seconds",
            "Time to append a batch of rows to the log, on disk.",
            buckets=_APPENDING,
            registry=own,
        )
        self._upstream = Histogram(
            f"{PREFIX}_upstream_seconds",
            "Time that mints took at OpenAI, by result: ok, or the code of the problem.",
            ["result"],
            buckets=_ASKING,
            registry=own,
        )
        self.issuer_fetches = Counter(
            f"{PREFIX}_issuer_fetches",
            "Fetches of an identity provider's keys, by issuer and result: ok or failed.",
            ["issuer", "result"],
            registry=own,
        )
        self.model_looks = Counter(
            f"{PREFIX}_model_looks",
            "Looks at OpenAI's list of models, by result: ok or failed.",
            ["result"],
            registry=own,
        )
        self.model_changes = Counter(
            f"{PREFIX}_model_changes",
            "What those looks have found different, by what it is.",
            ["change"],
            registry=own,
        )
        depth = Gauge(
            f"{PREFIX}_queue_depth",
            "Who waits now, by queue: mints for a place, rows until they are on disk.",
            ["queue"],
            multiprocess_mode="livesum",
            registry=own,
        )
        wait = Histogram(
            f"{PREFIX}_queue_wait_seconds",
            "How long the wait was, by queue; in vain or not.",
            ["queue"],
            buckets=_WAITING,
            registry=own,
        )
        queues: tuple[Queue, ...] = ("mint", "log")
        self._queues = {name: (depth.labels(name), wait.labels(name)) for name in queues}

    def expect_mints(self, profiles: Iterable[str]) -> None:
        """Begin at zero for each of the *profiles*, so that the first is an increase."""
        for profile in profiles:
            for outcome in OUTCOMES:
                self._mints.labels(profile, outcome)

    @contextmanager
    def minting(self, profile: str | None) -> Iterator[None]:
        """Count one mint by how it ends.

        Args:
            profile: Of the configuration; None when there is none of the name that was asked for.
        """
        outcome = "unknown"  # cancelled, or a bug
        try:
            yield
            outcome = "issued"
        except UpstreamProblem as problem:
            outcome = "unknown" if problem.may_have_minted else "failed"
            raise
        except AuditUnavailable:
            outcome = "unrecorded"
            raise
        except InvalidRequest:
            outcome = "invalid"
            raise
        except Problem:
            outcome = "denied"
            raise
        finally:
            self._mints.labels(profile or "", outcome).inc()

    def waiting(self, queue: Queue) -> "_Wait":
        """Count one more who waits in *queue*, and for how long: a context manager."""
        return _Wait(*self._queues[queue])

    @contextmanager
    def asking_upstream(self) -> Iterator[None]:
        """Measure one mint at OpenAI, and see how it ends."""
        began = perf_counter()
        result = "none"  # cancelled, or a bug
        try:
            yield
            result = "ok"
        except Problem as problem:
            result = problem.code
            raise
        finally:
            self._upstream.labels(result).observe(perf_counter() - began)

    def watch_models(self, days_left: Callable[[], Mapping[str, int]]) -> None:
        """Show for each model how many days are left, asked anew whenever somebody looks."""
        self._shown.register(_ModelEnds(days_left))

    def expect_model_changes(self, kinds: Iterable[str]) -> None:
        """Begin at zero for each of the *kinds*, so that the first is an increase."""
        for result in ("ok", "failed"):
            self.model_looks.labels(result)
        for kind in kinds:
            self.model_changes.labels(kind)

    def expect_issuer(self, issuer: str) -> None:
        """Begin at zero for *issuer*, so that the first failure is an increase."""
        for result in ("ok", "failed"):
            self.issuer_fetches.labels(issuer, result)

    def watch_issuers(self, key_ages: Callable[[], Mapping[str, float]]) -> None:
        """Show for each issuer how old its keys are, in the process that is asked."""
        self._shown.register(_IssuerKeys(key_ages))

    def exposition(self) -> bytes:
        """Return everything as Prometheus reads it, see `CONTENT_TYPE`."""
        if self._folder:
            _forget_the_dead(Path(self._folder))
        return generate_latest(self._shown)


class _Wait:
    """One who waits. Not a generator: each mint waits three times, and this costs half as much."""

    __slots__ = ("_began", "_depth", "_wait")

    def __init__(self, depth: Gauge, wait: Histogram) -> None:
        self._depth = depth
        self._wait = wait

    def __enter__(self) -> None:
        self._began = perf_counter()
        self._depth.inc()

    def __exit__(self, *_: object) -> None:
        self._depth.dec()
        self._wait.observe(perf_counter() - self._began)


class _ModelEnds(Collector):
    def __init__(self, days_left: Callable[[], Mapping[str, int]]) -> None:
        self._days_left = days_left

    def collect(self) -> Iterator[Metric]:
        ends = GaugeMetricFamily(
            f"{PREFIX}_model_end_days",
            "Days until OpenAI shuts a model down that a profile uses; only if that is announced.",
            labels=["model"],
        )
        for model, days in self._days_left().items():
            ends.add_metric([model], days)
        yield ends


class _IssuerKeys(Collector):
    def __init__(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        keys = GaugeMetricFamily(
            f"{PREFIX}_issuer_keys_age_seconds",
            "How long ago an identity provider's keys were fetched; none once they never were.",
            labels=["issuer"],
        )
        for issuer, age in self._ages().items():
            keys.add_metric([issuer], age)
        yield keys


def share_between_workers(folder: Path) -> None:
    """Let the processes that are started from now on count together, from nothing.

    Args:
        folder: Theirs alone; made or emptied.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left_over in folder.glob("*.db"):
        left_over.unlink()
    os.environ[_FOLDER] = str(folder)


def _forget_the_dead(folder: Path) -> None:
    """Drop what workers held that were killed: nobody waits there any more.

    What they have counted stays. A worker that ends in peace has nothing that waits.
    """
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)  # sends nothing
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # it has no annotations
