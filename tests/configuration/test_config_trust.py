"""What a configuration may name: nothing is imported, and nothing run, before the user said so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from lit_gfs.configuration.config_checks import check_values
from lit_gfs.configuration.config_files import complete_arguments, find_config
from lit_gfs.configuration.config_trust import take_trust
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.study.cell.planned import fit_command
from lit_gfs.study.planning.plan import Cell
from support.command_line import DQN, BuiltOnly, refused

MODULE = """
from pathlib import Path
from lightning.pytorch import Callback
Path("imported").touch()
class Bad(Callback):
    pass
def act(*arguments):
    Path("called").touch()
"""

LAUNCH = """{class_path: torch.distributed.launcher.elastic_launch, init_args: {entrypoint: /bin/true,
 config: {min_nodes: 1, max_nodes: 1, nproc_per_node: 1}}}"""

REFUSED = {
    "a model": "model: {class_path: side_effect.Bad}",
    "a model's short form": "model: side_effect.Bad",
    "a process": "model: {class_path: subprocess.Popen, init_args: {args: [touch, called]}}",
    "a command": "model: {class_path: os.system, init_args: {command: touch called}}",
    "a command behind an allowed module": "model: {init_args: {optimizer: torch.os.system}}",
    "an encoder": "model: {init_args: {encoder: {class_path: side_effect.Bad}}}",
    "a trunk": "model: {init_args: {trunk: {class_path: side_effect.Bad}}}",
    "an optimizer": "model: {init_args: {optimizer: {class_path: side_effect.act}}}",
    "an optimizer of another library": "model: {init_args: {optimizer: pytorch_optimizer.SOAP}}",
    "data": "data: {class_path: side_effect.Bad}",
    "an environment's module": "data: {init_args: {env_id: 'side_effect:CartPole-v1'}}",
    "a callback": "trainer: {callbacks: side_effect.Bad}",
    "a callback in a list": "trainer: {callbacks: [{class_path: side_effect.Bad}]}",
    "a callback's callable": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: "
    "{on_fit_start: side_effect.act}}]}",
    "a library's function": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: "
    "{on_fit_start: torch.hub.load}}]}",
    "a library's class that starts processes": "trainer: {callbacks: [{class_path: LambdaCallback, "
    f"init_args: {{on_fit_start: {LAUNCH}}}}}]}}",
    "a library's environment": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {on_fit_start: "
    "{class_path: torchrl.envs.GymEnv, init_args: {env_name: 'side_effect:CartPole-v1'}}}}]}",
    "a library's environment behind unlisted arguments": "trainer: {callbacks: [{class_path: LambdaCallback, "
    "init_args: {on_fit_start: {class_path: torchrl.envs.GymEnv, dict_kwargs: {env_name: CartPole-v1, "
    "backend: side_effect}}}}]}",
    "a library's interpreter": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {on_fit_start: "
    "{class_path: torchrl.envs.llm.transforms.PythonInterpreter, init_args: {persistent: true}}}}]}",
    "unlisted arguments": "trainer: {profiler: {class_path: PyTorchProfiler, "
    "dict_kwargs: {on_trace_ready: side_effect.act}}}",
    "a logger": "trainer: {logger: side_effect.Bad}",
    "a logger in a list": "trainer: {logger: [{class_path: side_effect.Bad}]}",
    "a plugin": "trainer: {plugins: [{class_path: side_effect.Bad}]}",
    "a strategy": "trainer: {strategy: {class_path: side_effect.Bad}}",
    "a profiler": "trainer: {profiler: {class_path: side_effect.Bad}}",
    "an intervention": "gfs: {path_init: {class_path: side_effect.Bad}}",
    "a loader of pickles": "model: {class_path: lit_gfs.agents.DQN.load_from_checkpoint}",
    "the program itself": "model: {class_path: lit_gfs.__main__.Bad}",
    "a program's own trust": "trust: [side_effect]\nmodel: {class_path: side_effect.Bad}",
}


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "side_effect", raising=False)
    Path("side_effect.py").write_text(MODULE)


@pytest.mark.parametrize("what", REFUSED)
def test_a_configuration_imports_nothing_that_is_not_trusted(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(REFUSED[what])

    refused([*DQN, "--config=mine.yaml"], capsys)

    assert "side_effect" not in sys.modules
    assert not Path("imported").exists()
    assert not Path("called").exists()


@pytest.mark.parametrize(
    "hooks", [torch.hub.load, [torch.hub.load], {"first": [torch.hub.load]}, (3, {torch.hub.load})]
)
def test_functions_are_found_however_deep(hooks: Any) -> None:
    layer = Namespace(class_path="torch.nn.Linear", init_args=Namespace(hooks=hooks))

    with pytest.raises(
        UserError, match=r"^model\.hooks is 'torch\.hub\.load'; expected a network, optimizer"
    ):
        check_values(Namespace(model=layer))
    check_values(
        Namespace(model=Namespace(class_path="torch.nn.Linear", init_args=Namespace(hooks=[3, {"a": 4}])))
    )


def test_neither_does_the_command_line_nor_what_lies_beside_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([*DQN, "--trainer.max_epochs=1"])
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    config = checkpoint.with_name("config.yaml")
    config.write_text(config.read_text().replace("lit_gfs.agents.DQN", "side_effect.Bad"))

    line = refused(["validate", f"--ckpt_path={checkpoint}"], capsys)

    assert "model is 'side_effect.Bad', which is not imported" in line
    assert "type --trust side_effect" in refused([*DQN, "--model=side_effect.Bad"], capsys)
    assert "side_effect" not in sys.modules


@pytest.mark.parametrize("trust", [["--trust", "side_effect"], ["--trust=other,side_effect"]])
def test_what_is_typed_is_trusted_for_that_run_alone(
    trust: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = complete_arguments([*DQN, "--trainer.callbacks+=side_effect.Bad", *trust])
    names = [type(callback).__name__ for callback in BuiltOnly(arguments).trainer.callbacks]  # type: ignore[attr-defined]

    assert "Bad" in names
    assert "not imported" in refused([*DQN, "--trainer.callbacks+=side_effect.Bad"], capsys)


def test_trust_is_taken_out_of_a_command_line() -> None:
    arguments, packages = take_trust(["fit", "--trust", "a,b.c", "--x=1", "--trust=[d, e]"])

    assert (arguments, packages) == (["fit", "--x=1"], ["a", "b.c", "d", "e"])


def test_the_cells_of_a_study_trust_what_the_study_does() -> None:
    assert fit_command(Cell("a", {}, []), Path("runs"), 1, ["mine"])[-1] == "--trust=mine"


def test_a_study_cannot_say_what_is_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    text = find_config("studies/smoke").read_text()
    Path("study.yaml").write_text(text.replace("model.trunk.depth: 3", "trust: side_effect"))

    assert "trust cannot be an option in a study" in refused(["study", "--config=study.yaml"], capsys)


def test_a_study_is_checked_before_it_imports_anything(capsys: pytest.CaptureFixture[str]) -> None:
    text = find_config("studies/smoke").read_text()
    Path("study.yaml").write_text(text.replace("lit_gfs.networks.PlainTrunk", "side_effect.Bad"))

    assert "side_effect.Bad" in refused(["study", "--config=study.yaml"], capsys)
    assert "side_effect" not in sys.modules


def test_a_package_is_named_as_one() -> None:
    with pytest.raises(UserError, match="--trust has no value"):
        take_trust(["fit", "--trust", "--x"])
