from pathlib import Path

import pytest

from loadtests.traces import TraceError, TraceRow, read_trace

HEADER = "arrival_s,input_tokens,output_tokens\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_name_whatever_else_there_is(tmp_path: Path) -> None:
    text = "class,output_tokens,source,arrival_s,session_id,input_tokens\nchat,7,azure,0.5,s1,100\n,8,azure,0.5,,200\n"
    assert read_trace(written(tmp_path, "\ufeff" + text)) == (
        TraceRow(arrival_s=0.5, input_tokens=100, output_tokens=7, class_name="chat"),
        TraceRow(arrival_s=0.5, input_tokens=200, output_tokens=8, class_name=None),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ["no column arrival_s, input_tokens, output_tokens"], id="empty"),
        pytest.param("TIMESTAMP,ContextTokens\n", ["no column arrival_s", "TIMESTAMP"], id="another form"),
        pytest.param(HEADER, ["no rows"], id="only a header"),
        pytest.param(HEADER + "-1,5,5\n", ["row 1", "arrival_s", "-1", "0 or more"], id="a negative time"),
        pytest.param(HEADER + "5,5,5\n\n3,5,5\n", ["row 2", "arrival_s", "3", "5", "sort"], id="not sorted"),
        pytest.param(HEADER + "0,5,5\nsoon,5,5\n", ["row 2", "arrival_s", "'soon'", "a number"], id="no number"),
        pytest.param(HEADER + "nan,5,5\n", ["row 1", "'nan'"], id="NaN"),
        pytest.param(HEADER + "inf,5,5\n", ["row 1", "'inf'"], id="infinite"),
        pytest.param(HEADER + "0,0,5\n", ["row 1", "input_tokens", "at least 1"], id="no prompt"),
        pytest.param(HEADER + "0,5,2.5\n", ["row 1", "output_tokens", "2.5", "whole"], id="half a token"),
        pytest.param(HEADER + "0,5\n", ["row 1", "2 values", "3"], id="a short row"),
    ],
)
def test_a_bad_trace_is_refused_with_its_row_and_its_value(tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.csv cannot be read as CSV: No such file or directory$"):
        read_trace(tmp_path / "nowhere.csv")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="binary"):
        read_trace(binary)
