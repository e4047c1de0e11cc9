"""Engine on real vLLM: what is refused before anything starts, and that nothing is left behind."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.errors import ModelError
from stargate.resources.models import resolve_model
from tests.integration.started_engine import CONFIG

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_a_core_does_not_outlive_its_engine(tmp_path: Path) -> None:
    """kill -9 on the process with the engine; nobody else ends the core."""
    program = (
        "import asyncio, sys, time\n"
        "from stargate.actors.engines.engine import Engine\n"
        "from stargate.actors.engines.spec import EngineSpec\n"
        "from stargate.resources.models import resolve_model\n"
        "from tests.integration.started_engine import CONFIG\n"
        "async def main():\n"
        "    model, log = str(resolve_model('embedded')), sys.argv[1]\n"
        "    spec = EngineSpec('questioner', model, CONFIG, cpu_cores='0', log_file=log)\n"
        "    await Engine(spec).start()\n"
        "    open(log + '.started', 'w').close()\n"
        "    await asyncio.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    script, log = tmp_path / "serve.py", tmp_path / "engine.log"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = psutil.Popen([sys.executable, str(script), str(log)], env=environment)
    try:
        deadline = time.monotonic() + 300
        while not Path(f"{log}.started").exists():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.2)
        children = process.children(recursive=True)
        (core,) = [p for p in children if "EngineCore" in " ".join(p.cmdline())]
    finally:
        process.kill()
        process.wait()
    gone, alive = psutil.wait_procs([core], timeout=30)
    assert gone == [core] and alive == []


async def test_a_folder_without_a_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        await Engine(EngineSpec("questioner", str(tmp_path), CONFIG)).start()


async def test_a_context_longer_than_the_models_is_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_model_len": 100_000})
    model_dir = str(resolve_model("embedded"))
    spec = EngineSpec("questioner", model_dir, config, log_file=str(tmp_path / "log"))
    with pytest.raises(ModelError, match=r"max_model_len \(100000\)"):
        await Engine(spec).start()
