"""Traces read from files, converted, scaled and made."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_data import measured

from autoscaling.simulation.conversion import azure_2023, mooncake
from autoscaling.simulation.servegen import servegen
from autoscaling.simulation.synthetic import (
    Load,
    Profile,
    arrivals,
    constant,
    diurnal,
    made,
    ramp,
    spike,
    square,
    step,
)
from autoscaling.simulation.traces import Trace, TraceError, read_trace, superposed, thinned, write_trace


def _written(path: Path, text: str) -> Path:
    file = path / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


def _trace(count: int = 1000) -> Trace:
    numbers = np.arange(1, count + 1, dtype=np.float64)
    return Trace(
        arrivals_s=numbers / 10,
        input_tokens=numbers,
        output_tokens=numbers * 2.0,
        sessions=tuple(map(str, range(1, count + 1))),
    )


class TestReading:
    def test_columns_are_found_by_name(self, tmp_path: Path) -> None:
        text = "class,output_tokens,row,arrival_s,input_tokens\nchat,5,1,0.25,100\ncode,7,2,0.5,200\n"
        trace = read_trace(_written(tmp_path, text))
        assert trace.arrivals_s.tolist() == [0.25, 0.5]
        assert trace.input_tokens.tolist() == [100, 200]
        assert trace.output_tokens.tolist() == [5, 7]
        assert (trace.classes, trace.sessions, trace.name) == (("chat", "code"), (), "trace")

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "trace.csv"
        write_trace(_trace(), file)
        again = read_trace(file)
        assert again.arrivals_s == pytest.approx(_trace().arrivals_s)
        assert again.output_tokens.tolist() == _trace().output_tokens.tolist()
        assert again.sessions == _trace().sessions

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("arrival_s,input_tokens\n1,2\n", "no column output_tokens; the header is 'arrival_s,input_tokens'"),
            ("arrival_s,input_tokens,output_tokens\n", "no rows"),
            ("", "no column arrival_s, input_tokens, output_tokens"),
            ("arrival_s,input_tokens,output_tokens\n1,2,3\nx,2,3\n", "row 2: arrival_s is 'x'; it must be a number"),
            ("arrival_s,input_tokens,output_tokens\n-1,2,3\n", "row 1: arrival_s is -1; .* 0 or more"),
            ("arrival_s,input_tokens,output_tokens\n2,2,3\n1,2,3\n", "row 2: arrival_s is 1; it must be not before"),
            ("arrival_s,input_tokens,output_tokens\n1,0,3\n", "row 1: input_tokens is 0; .* at least 1"),
            ("arrival_s,input_tokens,output_tokens\n1,2,2.5\n", "row 1: output_tokens is 2.5; .* whole number"),
            ("arrival_s,input_tokens,output_tokens\n1,nan,3\n", "row 1: input_tokens is nan"),
            ("arrival_s,input_tokens,output_tokens\ninf,2,3\n", "row 1: arrival_s is inf"),
            ("arrival_s,input_tokens,output_tokens\n1,2\n", "row 1 has 2 values; the header has 3"),
        ],
    )
    def test_mistakes_are_named_with_file_and_row(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(TraceError, match=f"trace.csv: .*{message}"):
            read_trace(_written(tmp_path, text))

    def test_a_missing_file_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=r"nothing\.csv cannot be read as CSV"):
            read_trace(tmp_path / "nothing.csv")


class TestConverting:
    def test_azure(self, tmp_path: Path) -> None:
        text = (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.0000001,110,0\n2023-11-16 18:18:04.4799600,34,12"
        )
        converted = azure_2023(_written(tmp_path, text))
        assert converted.trace.arrivals_s == pytest.approx([0, 60.5])
        assert converted.trace.output_tokens.tolist() == [10, 12]
        assert (converted.rows, converted.dropped) == (3, {"no tokens": 1})

    def test_mooncake_spreads_its_ticks_unless_told_not_to(self, tmp_path: Path) -> None:
        file = tmp_path / "made_trace.jsonl.gz"
        rows = [{"timestamp": 3000 * (row // 50), "input_length": 10, "output_length": 5} for row in range(100)]
        with gzip.open(file, "wt", encoding="utf-8") as lines:
            lines.write("\n".join([*map(json.dumps, rows), "not json"]))
        verbatim, spread, again = mooncake(file, seed=None), mooncake(file, seed=1), mooncake(file, seed=1)
        assert set(verbatim.trace.arrivals_s) == {0.0, 3.0}
        assert len(set(spread.trace.arrivals_s)) == 100
        assert 5 < spread.trace.duration_s < 6
        assert spread.trace.arrivals_s.tolist() == again.trace.arrivals_s.tolist()
        assert (verbatim.rows, verbatim.dropped) == (101, {"not readable": 1})

    @pytest.mark.parametrize(
        ("name", "rows", "mean_in"),
        [("azure2023_code", 3628, 2014.9), ("azure2023_conv", 5985, 1150.0), ("mooncake_conversation", 3658, 13403.1)],
    )
    def test_public_traces_come_through_whole(self, name: str, rows: int, mean_in: float) -> None:
        if name.startswith("azure"):
            converted = azure_2023(measured(f"../traces/{name}_first20min.csv"))
        else:
            converted = mooncake(measured(f"../traces/{name}_first20min.jsonl.gz"))
        assert converted.rows == len(converted.trace) + sum(converted.dropped.values()) == rows
        assert converted.trace.input_tokens.mean() == pytest.approx(mean_in, abs=0.1)
        assert 1190 < converted.trace.duration_s < 1205


class TestServeGen:
    """Two clients of 5 and 2 requests/s, the second of unknown lengths, in two windows of ten minutes."""

    @staticmethod
    def _directory(path: Path) -> Path:
        for client, rate, pattern, shape in ((3, 5.0, "Gamma", 0.5), (12, 2.0, "Weibull", 0.6)):
            rows = (f"0,{rate},1.4,{pattern},{shape},9", "600,0,0,,0,0", f"1200,{2 * rate},1.4,{pattern},{shape},9")
            (path / f"chunk-{client}-trace.csv").write_text("\n".join(rows), encoding="utf-8")
        spans = {
            "0": {"input_tokens": "{10: 0.5, 1000: 0.5}", "output_tokens": "{1: 0.5, 100: 0.5}"},
            "600": {"input_tokens": "{}", "output_tokens": "{}"},
            "1200": {"input_tokens": "{7: 1.0}", "output_tokens": "{5: 1.0}"},
        }
        (path / "chunk-3-dataset.json").write_text(json.dumps(spans), encoding="utf-8")
        return path

    def test_rates_and_lengths_are_those_of_the_clients(self, tmp_path: Path) -> None:
        files = self._directory(tmp_path)
        converted = servegen(files, files, from_s=0, until_s=1800, seed=1)
        trace, times_s = converted.trace, converted.trace.arrivals_s
        assert np.histogram(times_s, bins=[0, 600, 1200, 1800])[0] == pytest.approx([3000, 0, 6000], rel=0.1)
        assert sum(converted.dropped.values()) == pytest.approx(2 * 600 + 4 * 600, rel=0.15)
        assert converted.rows == len(trace) + sum(converted.dropped.values())
        first = times_s < 600
        assert set(trace.input_tokens[first]) == {10, 1000}
        assert set(trace.input_tokens[~first]) == {7}
        assert abs(np.corrcoef(trace.input_tokens[first], trace.output_tokens[first])[0, 1]) < 0.1, "independent"

    def test_a_share_of_a_span_begins_at_zero(self, tmp_path: Path) -> None:
        files = self._directory(tmp_path)
        converted = servegen(files, files, from_s=1300, until_s=1700, seed=1, share=0.1)
        assert len(converted.trace) == pytest.approx(400, rel=0.25)
        assert converted.trace.duration_s == pytest.approx(400, abs=10)

    @pytest.mark.parametrize(("from_s", "until_s"), [(0.0, 0.0), (700.0, 1100.0)])
    def test_nothing_to_draw_is_told(self, tmp_path: Path, from_s: float, until_s: float) -> None:
        files = self._directory(tmp_path)
        with pytest.raises(TraceError, match=r"there must be|no request"):
            servegen(files, files, from_s=from_s, until_s=until_s, seed=1)


class TestScaling:
    @settings(max_examples=20)
    @given(share=st.floats(0.05, 1), seed=st.integers(0, 100))
    def test_thinning_keeps_requests_whole_and_time_as_it_is(self, share: float, seed: int) -> None:
        thin = thinned(_trace(), share, np.random.default_rng(seed))
        assert len(thin) == pytest.approx(1000 * share, abs=80)
        assert thin.arrivals_s == pytest.approx(thin.input_tokens / 10)
        assert [int(name) for name in thin.sessions] == thin.input_tokens.tolist()

    @settings(max_examples=20)
    @given(times=st.floats(1, 4), seed=st.integers(0, 100))
    def test_superposing_adds_requests_in_the_same_time(self, times: float, seed: int) -> None:
        more = superposed(_trace(), times, np.random.default_rng(seed))
        assert len(more) == pytest.approx(1000 * times, abs=80)
        assert more.duration_s <= 100
        assert more.input_tokens.mean() == pytest.approx(500, rel=0.1)

    @pytest.mark.parametrize("share", [0, -1, 1.5])
    def test_a_share_that_is_none_is_told(self, share: float) -> None:
        with pytest.raises(TraceError, match="share is"):
            thinned(_trace(), share, np.random.default_rng(0))


class TestMade:
    @pytest.mark.parametrize(
        ("profile", "early", "late"),
        [
            (constant(5.0), 5, 5),
            (step(2.0, 8.0, at_s=500), 2, 8),
            (ramp(0.0, 10.0, from_s=0, until_s=1000), 2.5, 7.5),
            (spike(2.0, 50.0, from_s=600, for_s=60), 2, 2 + 48 * 60 / 500),
            (square(1.0, 9.0, period_s=1000), 1, 9),
            (square(1.0, 9.0, period_s=100), 5, 5),
            (diurnal(5.0, 1.0, period_s=1000, peak_s=750), 5 * (1 - 2 / np.pi), 5 * (1 + 2 / np.pi)),
        ],
    )
    def test_the_rate_is_as_asked(self, profile: Profile, early: float, late: float) -> None:
        counts = [
            np.histogram(arrivals(profile, 1000, 1.0, np.random.default_rng(seed)), bins=[0, 500, 1000])[0] / 500
            for seed in range(20)
        ]
        assert np.mean(counts, axis=0) == pytest.approx([early, late], rel=0.06)

    @pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 3.0])
    def test_gaps_vary_as_asked(self, variation: float) -> None:
        times_s = arrivals(constant(10.0), 5000, variation, np.random.default_rng(3))
        gaps = np.diff(times_s)
        assert len(times_s) == pytest.approx(50_000, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-6)

    def test_nothing_arrives_while_the_rate_is_zero(self) -> None:
        times_s = arrivals(square(4.0, 0.0, period_s=200), 1000, 1.0, np.random.default_rng(0))
        assert len(times_s) == pytest.approx(2000, rel=0.1)
        in_period_s = times_s % 200
        assert not np.any((in_period_s > 101) & (in_period_s < 199)), "a rate is a straight line within a second"

    def test_lengths_follow_their_mean_and_spread(self) -> None:
        load = Load(
            requests_per_s=constant(20.0),
            input_tokens=step(500, 4000, at_s=1000),
            output_tokens=constant(200),
            duration_s=2000,
            output_spread=0.5,
        )
        trace = made(load, seed=5)
        late = trace.arrivals_s > 1000
        assert trace.input_tokens[~late].mean() == pytest.approx(500, rel=0.05)
        assert trace.input_tokens[late].mean() == pytest.approx(4000, rel=0.05)
        assert trace.output_tokens.std() / trace.output_tokens.mean() == pytest.approx(0.5, rel=0.05)
        assert made(load, seed=5).input_tokens.tolist() == trace.input_tokens.tolist()
        assert made(load, seed=6).input_tokens.tolist() != trace.input_tokens.tolist()
        assert all(early <= later for early, later in pairwise(trace.arrivals_s))

    @pytest.mark.parametrize(
        ("rate", "duration_s", "variation", "message"),
        [(-1.0, 10, 1, "down to -1"), (1.0, 0, 1, "duration_s is 0"), (1.0, 10, -1, "variation is -1")],
    )
    def test_what_cannot_be_is_told(self, rate: float, duration_s: float, variation: float, message: str) -> None:
        with pytest.raises(TraceError, match=message):
            arrivals(constant(rate), duration_s, variation, np.random.default_rng(0))
