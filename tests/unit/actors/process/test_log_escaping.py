"""The logs of engines, scorers and trainers: whatever they print can't control a terminal."""

import subprocess
import sys
from pathlib import Path

import pytest

from stargate.actors.process.log_escaping import readable
from tests.unit.test_safety import ESCAPED, NASTY, dangerous

# What an actor's process may do with a text that a model wrote.
WRITES = f"""
import logging, sys, traceback
nasty = {NASTY!r}
handler = logging.StreamHandler(sys.stdout)  # set up before, as vLLM does
def write():
    print(nasty)
    logging.getLogger("a").addHandler(handler)
    logging.getLogger("a").warning("%s", nasty)
    sys.stderr.write(nasty + "\\n")
    try:
        raise ValueError(nasty)
    except ValueError:
        traceback.print_exc()
"""


def play(script: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def check(text: str, times: int) -> None:
    assert not dangerous(text.replace("\t", ""))
    # The carriage return ends its line; all else is escaped.
    assert text.count(ESCAPED.partition(r"\x0d")[0]) == times
    assert text.count(ESCAPED.partition(r"\x0d")[2]) == times


def test_carriage_returns_end_a_line_and_tabs_are_spaces() -> None:
    assert readable("50%\r100%\r\nnext\tone\n") == "50%\n100%\nnext    one\n"
    assert readable(NASTY) == ESCAPED.replace(r"\x0d", "\n")


def test_an_engines_log_is_escaped_until_it_is_closed(tmp_path: Path) -> None:
    log = tmp_path / "questioner-0.log"
    script = f"""{WRITES}
from stargate.actors.engines.startup import NoiseLog
log = NoiseLog({str(log)!r})
write()
raise_again = "ValueError: " + nasty.partition("\\r")[0]
print("cause:", ascii(log.root_cause()))
log.close()
log.close()
print("x\\x1b[2Jy", flush=True)
"""
    done = play(script)
    assert done.stdout == b"x\x1b[2Jy\n"  # as it was
    text = log.read_text(encoding="utf-8")
    check(text, 4)
    assert r"cause: 'ValueError: a\\x1b[2J" in text


def test_what_vllms_own_processes_write_is_escaped(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""{WRITES}
import multiprocessing
def child():
    from stargate.actors.process.log_escaping import escape_output_of_children
    escape_output_of_children()
    escape_output_of_children()
    write()
if __name__ == "__main__":
    from stargate.actors.process.log_escaping import escape_output_of_children
    escape_output_of_children()  # of no effect here
    print("x\\x1b[2Jy", flush=True)
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
""")
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        cwd=Path(__file__).parents[4],
    )
    assert done.returncode == 0, done.stdout
    first, _, rest = done.stdout.decode().partition("\n")
    assert first == "x\x1b[2Jy"
    check(rest, 4)


def test_vllms_plugin_sees_to_it() -> None:
    source = Path("actors/engines/weight_files.py")
    text = (Path(__file__).parents[4] / source).read_text()
    register = text.partition("def register()")[2].partition("\n\n\n")[0]
    assert "escape_output_of_children()" in register


def test_a_defects_traceback_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    from stargate.launch.cli import _show_defect

    try:
        raise ValueError(NASTY)
    except ValueError as error:
        _show_defect(type(error), error, error.__traceback__)
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):")
    assert "ValueError: " + ESCAPED in text and not dangerous(text)
