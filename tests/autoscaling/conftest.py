"""One real Prometheus that scrapes exporters with known traffic, and one with two weeks of data written at once."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_builders import Scraped, Traffic, exporter, prometheus
from prometheus_traffic import REPLICAS, STEADY, bursty_samples, old_samples, steady_requests, swinging_samples


@pytest.fixture(scope="session")
def prometheus_binary() -> str:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("needs the binary `prometheus` (apt-get install prometheus)")
    return found


@pytest.fixture(scope="session")
def scraped(prometheus_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    traffics = (
        Traffic(
            model=STEADY,
            rate=40.0,
            requests=steady_requests(),
            gauges=dict(zip(REPLICAS, ((4, 1, 0.2), (6, 0, 0.4), (2, 0, 0.9)), strict=True)),
            refused_per_s=10.0,
        ),
        Traffic(model="idle", rate=0.0, gauges={REPLICAS[0]: (0, 0, 0.0)}),
        Traffic(model="restarted", rate=40.0, requests=steady_requests(), gauges={REPLICAS[0]: (1, 0, 0.1)}),
    )
    doomed = Traffic(model="doomed", rate=10.0, requests=steady_requests(), gauges={REPLICAS[0]: (1, 0, 0.1)})
    shared = Traffic(model="shared", rate=10.0, requests=steady_requests(), gauges={REPLICAS[0]: (3, 0, 0.5)})
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        exporter(*traffics, shared) as (address, _),
        exporter(doomed, shared) as (doomed_address, stop),
        prometheus(prometheus_binary, folder, (address, doomed_address)) as (url, _),
    ):
        by_model = {traffic.model: traffic for traffic in (*traffics, doomed)}
        yield Scraped(url=url, traffic=by_model, stop_doomed=stop)


@pytest.fixture(scope="session")
def past_url(prometheus_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two weeks and a day of `old`, in which an hour is missing, and of `bursty`, whose requests come by the dozen;
    two minutes of `swinging`."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs the binary `promtool` (apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("past")
    text = folder / "metrics.txt"
    text.write_text("\n".join((*bursty_samples(), *old_samples(), *swinging_samples(), "# EOF\n")))
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "data")]
    subprocess.run([*command, "--max-block-duration=512h"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    with prometheus(prometheus_binary, folder) as (url, _):
        yield url
