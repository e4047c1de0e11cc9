"""What the chaos benchmark sees of a run, without models: processes, their logs, its lines.

Two scorers that are started again when they die; the run ends when `finish` stands in its folder.
"""

import subprocess
import sys
import time
from pathlib import Path


def main(command: str, place: str, program: str) -> None:
    run = Path(place).resolve()
    logs = run / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    print(f"run directory: {place}", flush=True)
    scorers = {name: start(program, logs / f"{name}.log") for name in ("scorer-0", "scorer-1")}
    print("setup: done in 0.1 s, 1/1 group of actors", flush=True)
    try:
        while not (run / "finish").exists():
            for name, process in scorers.items():
                if process.poll() is not None:
                    scorers[name] = start(program, logs / f"{name}.log")
                    print(f"{name} is back after 0.1 s", flush=True)
            time.sleep(0.02)
    finally:
        for process in scorers.values():
            process.kill()
    (run / f"{command}.done").touch()


def start(program: str, log: Path) -> "subprocess.Popen[bytes]":
    """A scorer ends by itself a moment after its driver is gone: its standard input closes."""
    with log.open("a") as out:
        return subprocess.Popen([program], stdin=subprocess.PIPE, stdout=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
