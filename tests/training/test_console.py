"""What a run prints, to a pipe and to a terminal."""

import io

import pytest

from igpo_jax.training import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture()
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (0.84, "0.8s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3599.7, "1h 00m"),
        (7620, "2h 07m"),
        (86399, "1d 00h"),
        (4 * 86400 + 3 * 3600, "4d 03h"),
    ],
)
def test_format_duration(seconds, text):
    assert console.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (12.0, "12"),
        (0.53124, "0.5312"),
        (0.0, "0"),
        (-1.5, "-1.5000"),
        (3.1e-7, "3.1e-07"),
        (12345.678, "1.23e+04"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_format_number(value, text):
    assert console.format_number(value) == text


def progress_lines(stream, times, total=100, start=0, **values):
    clock = iter([0.0, *times])
    progress = console.Progress(total, "igpo", start, stream, clock=lambda: next(clock))
    for step in range(start + 1, start + 1 + len(times)):
        progress.update(step, values)
    return stream.getvalue().splitlines()


def test_a_line_has_step_values_rate_and_time_left():
    lines = progress_lines(io.StringIO(), [30.0, 32.0, 34.0], loss=0.25, note="warm")
    assert lines[0] == "igpo     1/100   1%  loss 0.2500  note warm  30.0 s/step, 49m 30s left"
    # The first step compiled; it counts no longer once there are others.
    assert lines[2] == "igpo     3/100   3%  loss 0.2500  note warm  2.0 s/step, 3m 14s left"


def test_fast_steps_are_shown_as_a_rate():
    assert progress_lines(io.StringIO(), [0.25, 0.5, 0.75])[-1].endswith("4.00 steps/s, 24s left")


def test_the_rate_of_a_resumed_run_counts_its_own_steps_only():
    assert progress_lines(io.StringIO(), [1.0, 2.0], total=60, start=50)[-1].endswith("1.00 steps/s, 8.0s left")


def test_the_rate_follows_the_last_steps():
    times = [float(t) for t in range(1, 31)] + [30.0 + 5 * t for t in range(1, 31)]
    assert "5.0 s/step" in progress_lines(io.StringIO(), times)[-1]


def test_a_clock_that_stands_still_shows_no_rate():
    assert progress_lines(io.StringIO(), [0.0], loss=1.0) == ["igpo     1/100   1%  loss 1"]


def test_colours_only_on_a_terminal_that_wants_them(colours, monkeypatch):
    assert "\033[" not in "".join(progress_lines(io.StringIO(), [1.0], loss=0.5))
    assert "\033[1m" in "".join(progress_lines(Terminal(), [1.0], loss=0.5))
    assert console.styled("x", "red", Terminal()) == "\033[31mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.styled("x", "red", Terminal()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert console.styled("x", "red", Terminal()) == "x"


def test_a_narrow_terminal_gets_one_line_a_step(colours, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    values = {"reward": 0.5, "pass": 0.25, "kl": 0.125}
    for columns, shown in ((200, 3), (86, 3), (85, 2), (75, 2), (74, 1), (47, 0), (10, 0)):
        monkeypatch.setenv("COLUMNS", str(columns))
        (line,) = progress_lines(Terminal(), [1.0], **values)
        assert [name for name in values if f"{name} " in line] == list(values)[:shown]
        assert len(line) < columns or shown == 0
        assert line.startswith("igpo     1/100   1%") and line.endswith("left")
    monkeypatch.setenv("COLUMNS", "20")
    (line,) = progress_lines(io.StringIO(), [1.0], **values)
    assert "kl 0.1250" in line, "what is not a terminal gets whole lines"


def test_colours_take_no_room(colours, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = progress_lines(Terminal(), [1.0], reward=0.5, kl=0.125)
    assert "\033[2mkl\033[0m 0.1250" in line and len(line) > 80


def test_table_aligns_numbers_right_and_text_left():
    text = console.table([["start", 0.0125, 10], ["igpo", 12.5, 1200]], ["stage", "pass@1", "n"])
    assert text.splitlines() == [
        "stage   pass@1     n",
        "-----  -------  ----",
        "start   0.0125    10",
        "igpo   12.5000  1200",
    ]


def test_texts_that_start_with_a_number_stand_right():
    text = console.table([["sft", "5.1%", "", "9.8s"], ["igpo", "45.3%", "12%", "2m 05s"]], ["a", "b", "c", "time"])
    assert text.splitlines()[2:] == ["sft    5.1%         9.8s", "igpo  45.3%  12%  2m 05s"]


def test_table_without_rows_is_its_header():
    assert console.table([], ["a", "bc"]) == "a  bc\n-  --"


def test_note_prints_at_once(capsys):
    console.note("hello")
    assert capsys.readouterr().out == "hello\n"


def test_elapsed():
    clock = iter([10.0, 12.5])
    assert console.Progress(1, "sft", clock=lambda: next(clock)).elapsed() == 2.5
