"""Generation from text: templates, hints, the record of every step, the page, conversations, and the terminal."""

import html.parser
import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

from igpo_jax.commands import live
from igpo_jax.data.tokenizers import load_tokenizer
from igpo_jax.pages.text import printable

ROOT = pathlib.Path(__file__).parents[2]
QUESTION = "Mia has 427 dollars. Then she finds a ten. How many dollars does Mia have?"
TRACE = "finds ten 437\nloses hundred 337\n#### 337"


@pytest.fixture(scope="module")
def words(run_dir):
    return load_tokenizer(run_dir / "tokenizer")


def test_a_run_directory_works_as_it_is(run, run_dir):
    done = run("generate", "--checkpoint", run_dir, "--prompt", QUESTION)
    assert done.code == 0 and done.err == ""
    assert done.out.strip() and "\x1b" not in done.out and "░" not in done.out
    again = run("generate", "--checkpoint", run_dir, "--prompt", QUESTION, "--no-live")
    assert again.out == done.out


def test_json_tells_every_step(run, run_dir, words):
    flags = ("--prompt", QUESTION, "--hint", "ten 437@4", "--hint", "#### 337@40", "--json")
    done = run("generate", "--checkpoint", run_dir, *flags)
    found = json.loads(done.out)
    assert found["sampler"] | {"length": 48, "steps": 24, "block_length": 16, "temperature": 0.0} == found["sampler"]
    assert [token["position"] for token in found["tokens"]] == list(range(48))
    hints = {4: " ten", 5: " 4", 6: "3", 7: "7", 40: "####", 41: " 3", 42: "3", 43: "7"}
    assert {t["position"] for t in found["tokens"] if t["source"] == "hint"} == set(hints)
    assert [found["tokens"][p]["text"].strip() for p in hints] == [text.strip() for text in hints.values()]
    final = [token["id"] for token in found["tokens"]]
    assert found["text"] == words.decode(final, until_eos=True)
    mask = words.mask_id
    before = [token["id"] if token["source"] == "hint" else mask for token in found["tokens"]]
    for step in found["steps"]:
        start = 16 * step["block"]
        for place, (old, new) in enumerate(zip(before, step["tokens"], strict=True)):
            assert (old != new) == (place in step["revealed"])
        for place in step["revealed"]:
            token = found["tokens"][place]
            assert step["tokens"][place] == token["id"] == step["choices"][place - start]
            assert (token["source"], token["step"]) == ("step", step["step"])
            assert token["confidence"] == step["confidences"][place - start]
        masked = [before[start + k] == mask for k in range(16)]
        assert [value is not None for value in step["confidences"]] == masked
        before = step["tokens"]
    assert before == final and mask not in final


def test_json_goes_to_a_file_beside_the_text(run, run_dir, tmp_path):
    place = tmp_path / "steps.json"
    done = run("generate", "--checkpoint", run_dir, "--prompt", QUESTION, "--json", place)
    assert json.loads(place.read_text())["text"].strip() == done.out.strip()


def test_flags_change_the_run_s_sampler(run, run_dir):
    flags = ("--length", 8, "--steps", 2, "--block-length", 8, "--temperature", 0.5, "--selection", "random")
    sampler = json.loads(run("generate", "--checkpoint", run_dir, "--prompt", QUESTION, "--json", *flags).out)[
        "sampler"
    ]
    assert sampler | {"length": 8, "steps": 2, "temperature": 0.5, "selection": "random"} == sampler
    flags = ("--preset", "official", "--length", 16, "--steps", 2, "--block-length", 8)
    sampler = json.loads(run("generate", "--checkpoint", run_dir, "--prompt", QUESTION, "--json", *flags).out)[
        "sampler"
    ]
    assert (sampler["eos_exit"], sampler["temperature"], sampler["length"]) == ("batch", 1.2, 16)


def test_a_solution_gives_hints_but_not_its_answer(run, run_dir, words):
    flags = ("--prompt", QUESTION, "--trace", TRACE, "--hint-ratio", 1, "--chunk-min", 2, "--chunk-max", 3, "--json")
    done = run("generate", "--checkpoint", run_dir, *flags)
    assert re.fullmatch(r"hints: (\d+) of \1 chunks, 0 without room\n", done.err)
    tokens = json.loads(done.out)["tokens"]
    shown = [token["text"].strip() for token in tokens if token["source"] == "hint"]
    assert shown == ["finds", "ten", "4", "3", "7", "", "loses", "hundred", ""]


def test_a_solution_is_placed_as_in_the_released_code_on_demand(run, run_dir):
    flags = ("--prompt", QUESTION, "--trace", TRACE, "--hint-ratio", 0.5, "--hint-placement", "official")
    flags += ("--chunk-min", 4, "--chunk-max", 4, "--answer-room", 8, "--json")
    tokens = json.loads(run("generate", "--checkpoint", run_dir, *flags).out)["tokens"]
    shown = {t["position"]: t["text"].strip() for t in tokens if t["source"] == "hint"}
    # The last chunk is always shown, spread by the room of 40 over 16 tokens, at most by half.
    assert [shown[place] for place in range(max(shown) - 3, max(shown) + 1)] == ["####", "3", "3", "7"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--prompt", " "), "the prompt is empty"),
        (("--prompt", "Mia has 427 bananas"), "has no token for 'bananas'; use words that its training data had"),
        (
            ("--prompt", QUESTION * 5),
            "the prompt has 100 tokens and --length is 48, but the model's rows have at most 96",
        ),
        (("--prompt", QUESTION, "--hint", "ten"), "--hint is 'ten', expected TEXT@POSITION"),
        (("--prompt", QUESTION, "--hint", "ten@-1"), "--hint is 'ten@-1', expected TEXT@POSITION"),
        (("--prompt", QUESTION, "--hint", " @3"), "--hint ' @3' has no tokens"),
        (
            ("--prompt", QUESTION, "--hint", "437@46"),
            "--hint '437@46' covers positions 46 to 48, outside the canvas of 48",
        ),
        (("--prompt", QUESTION, "--hint", "437@4", "--hint", "ten@6"), "'ten@6' overlaps --hint '437@4' at position 6"),
        (("--prompt", QUESTION, "--hint", "pear@4"), "has no token for 'pear'"),
        (("--prompt", QUESTION, "--trace", TRACE), "--hint-ratio is missing"),
        (("--prompt", QUESTION, "--trace", "finds ten", "--hint-ratio", "0.5"), "--trace states no final answer"),
        (("--prompt", QUESTION, "--trace", TRACE, "--hint", "ten@1"), "--hint and --trace both say"),
        (("--prompt", QUESTION, "--steps", "7"), "--steps is 7, which does not divide over 3 blocks; use 6 or 9"),
        (("--chat", "--hint", "ten@1"), "--hint is for one --prompt; leave it out with --chat"),
        (
            ("--prompt", QUESTION, "--html", "none/page.html"),
            "--html none/page.html lies in a folder that does not exist",
        ),
    ],
)
def test_a_request_that_will_not_do(refused, run_dir, flags, sentence):
    assert sentence in refused("generate", "--checkpoint", run_dir, *flags)


# --- the page ---


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and the text of every token's span."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.tokens, self._inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag == "span" and ("data-from" in dict(attrs))
        if self._inside:
            self.tokens.append((dict(attrs), ""))

    def handle_data(self, data):
        if self._inside:
            self.tokens[-1] = (self.tokens[-1][0], data)
            self._inside = False


def test_the_page_holds_every_step_and_loads_nothing(run, run_dir, tmp_path):
    place = tmp_path / "page.html"
    flags = ("--prompt", QUESTION, "--hint", "ten 437@4", "--html", place, "--json")
    found = json.loads(run("generate", "--checkpoint", run_dir, *flags).out)
    text = place.read_text(encoding="utf-8")
    page = Page(text)
    assert [token for token in re.findall(r"https?:|//", text) if token != "//"] == [] and "//" not in text
    assert not {name for name, _ in page.attributes} & {"src", "href", "style", "onclick", "onload"}
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    order = [step["step"] for step in found["steps"]]
    assert len(page.tokens) == len(found["tokens"])
    for (attributes, shown), token in zip(page.tokens, found["tokens"], strict=True):
        expected = 0 if token["source"] == "hint" else order.index(token["step"]) + 1
        assert int(attributes["data-from"]) == expected
        assert shown.strip() == token["text"].strip()
        assert ("hint" in attributes["class"].split()) == (token["source"] == "hint")
    assert f'max="{len(order)}"' in text


def test_what_a_model_writes_is_escaped(run, chat_dir, tmp_path):
    place = tmp_path / "page.html"
    planted = '</span><script>alert("&")</script>\x1b[2J'
    flags = ("--prompt", planted, "--hint", f"{planted}@3", "--html", place)
    flags += ("--length", 64, "--steps", 2, "--block-length", 64)
    done = run("generate", "--checkpoint", chat_dir, *flags)
    assert done.code == 0 and "\x1b" not in done.out and "\\x1b[2J" in done.out
    text = place.read_text(encoding="utf-8")
    assert Page(text).tags.count("script") == 1
    assert "<script>alert" not in text and "&lt;/span&gt;&lt;script&gt;" in text and "\x1b" not in text


# --- conversations ---


def chat(run, monkeypatch, folder, lines, *flags):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    return run("generate", "--checkpoint", folder, "--chat", *flags)


SHORT = ("--length", "16", "--steps", "4", "--block-length", "16")


def test_a_conversation_goes_on_as_in_the_reference(run, monkeypatch, chat_dir):
    """Every prompt is the conversation so far: begin token once, earlier answers without end tokens."""
    from igpo_jax.commands import text_generation

    prompts, answers = [], []
    complete = text_generation.complete

    def spy(opened, sampler, prompt, *rest, **more):
        prompts.append(list(prompt))
        done = complete(opened, sampler, prompt, *rest, **more)
        answers.append(np.asarray(done.tokens)[0].tolist())
        return done

    monkeypatch.setattr(text_generation, "complete", spy)
    done = chat(run, monkeypatch, chat_dir, ["hello", "", "and more", "/new", "hello", "/quit", "never"], *SHORT)
    assert done.code == 0 and len(prompts) == 3 and "\x1b" not in done.out
    words = load_tokenizer(chat_dir)
    bos = words.fast.bos_token_id
    first, second = words.encode_prompt("hello"), words.encode_prompt("and more")
    assert first[0] == second[0] == bos
    kept = [token for token in answers[0] if token != words.eos_id]
    assert prompts == [first, [*first, *kept, *second[1:]], first]
    assert done.out == "".join(printable(words.decode(answer, until_eos=True)) + "\n" for answer in answers)


def test_lines_are_prompts_of_their_own_without_a_chat_template(run, monkeypatch, run_dir):
    one = run("generate", "--checkpoint", run_dir, "--prompt", QUESTION).out
    done = chat(run, monkeypatch, run_dir, [QUESTION, QUESTION])
    assert done.out == one * 2


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_somebody_who_types_is_asked_on_after_a_mistake(run, monkeypatch, run_dir):
    one = run("generate", "--checkpoint", run_dir, "--prompt", QUESTION).out
    monkeypatch.setattr(sys, "stdin", Typed(f"bananas?\n{QUESTION}\n"))
    done = run("generate", "--checkpoint", run_dir, "--chat")
    assert done.code == 0 and done.err == ""
    first, mistake, answer = done.out.split("> ", 2)
    assert first == "no chat template, so every line is a prompt of its own, /quit or Ctrl-D ends\n"
    assert mistake.startswith("error: the tokenizer of") and "'bananas?'" in mistake
    assert answer == f"{one}> "


def test_a_conversation_that_has_grown_too_long(run, monkeypatch, chat_dir):
    done = chat(run, monkeypatch, chat_dir, ["hello", "x" * 120], *SHORT)
    assert done.code == 2 and re.search(r"error: the prompt has \d+ tokens and --length is 16", done.err)


# --- the terminal ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def frames_of(text: str) -> list[str]:
    """What stands on the screen after each drawing, without styles."""
    parts = re.split(r"\x1b\[\d+F\x1b\[J", text.replace("\r\n", "\n"))
    return [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", part) for part in parts]


def test_masks_turn_into_words_on_a_terminal(run_dir, words):
    command = [sys.executable, "-m", "igpo_jax.generate", "--checkpoint", str(run_dir), "--prompt", QUESTION]
    command += ["--hint", "ten 437@2"]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert plain.returncode == 0 and "\x1b" not in plain.stdout and "░" not in plain.stdout
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    assert process.returncode == 0
    text = shown.decode()
    frames = frames_of(text)
    masks = [frame.count("░") for frame in frames]
    assert masks[0] == 44 and masks == sorted(masks, reverse=True) and len(set(masks)) > 10 and masks[-1] == 0
    assert "step  1/24  block 1/3" in frames[1] and "step 24/24  block 3/3" in frames[-2]
    assert all("437" in frame for frame in frames)
    assert "\x1b[33mten 437\x1b[0m" in text.replace("\x1b[33m ", "\x1b[33m")
    assert plain.stdout.strip() in frames[-1] and "tokens before the end" in frames[-1]
    assert text.startswith("\x1b[?25l") and text.rstrip().endswith("\x1b[?25h")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other side has closed
        return b""


def drawn(words, tokens, given=None, **size) -> tuple[live.Live, Terminal]:
    from igpo_jax.diffusion.sampler import Sampler

    hints = np.full(len(tokens), -1, np.int32) if given is None else given
    stream = Terminal()
    sampler = Sampler(length=len(tokens), steps=len(tokens), block_length=len(tokens))
    return live.Live(words, sampler, hints, stream, clock=lambda: 0.0), stream


def test_a_canvas_higher_than_the_screen_shows_where_it_happens(words, monkeypatch):
    from igpo_jax.diffusion.stepwise import Moment

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "8")
    tokens = np.full(400, words.mask_id, np.int32)
    tokens[:200] = words.encode("ten")[0]
    screen, stream = drawn(words, tokens)
    screen.show(Moment(0, 0, tokens[None]))
    lines = frames_of(stream.getvalue())[-1].strip("\n").split("\n")
    assert len(lines) == 6 and all(len(line) <= 60 for line in lines)
    assert any("ten" in line and "░" in line for line in lines[1:])


def test_without_colours_hints_still_stand_out(words, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    tokens = np.array(words.encode("finds ten 437"), np.int32)
    given = np.where(np.arange(len(tokens)) == 1, tokens, -1)
    screen, stream = drawn(words, tokens, given)
    screen.finish(tokens)
    assert "finds[ ten] 437" in stream.getvalue() and "\x1b[3" not in stream.getvalue()


def test_what_a_model_writes_cannot_command_the_terminal(chat_dir):
    words = load_tokenizer(chat_dir)
    tokens = np.array(words.encode("a\x1b[2J\x9b1m\rb"), np.int32)
    screen, stream = drawn(words, tokens)
    screen.finish(tokens)
    assert "a\\x1b[2J\\x9b1m\\x0db" in stream.getvalue() and "\x1b[2J" not in stream.getvalue()


@pytest.mark.parametrize(
    ("texts", "width", "lines"),
    [
        (["ab", "cd", "ef"], 4, ["abcd", "ef"]),
        (["abcdef"], 4, ["abcd", "ef"]),
        (["a\nb", "\n", "c"], 9, ["a", "b", "c"]),
        (["日本", "x"], 4, ["日本", "x"]),
        (["日本", "x"], 3, ["日", "本x"]),
        ([], 4, [""]),
    ],
)
def test_lines_break_at_the_edge_and_at_line_ends(texts, width, lines):
    found, _ = live.wrap([live.Cell(text, "known") for text in texts], width)
    assert ["".join(cell.text for cell in line) for line in found] == lines


def test_a_dumb_terminal_is_a_pipe(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not live.shows(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert live.shows(Terminal()) and not live.shows(io.StringIO())
