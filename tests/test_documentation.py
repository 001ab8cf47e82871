"""Every command and every program in README and docs runs, made short by options at its end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.main import main
from support.datasets import write_cifar10

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
INTERVENTIONS = PAGES["docs/interventions/README.md"]
# Which page lists the shipped configurations of a folder.
LISTS = {"": PAGES["docs/training.md"], "recipes": INTERVENTIONS, "studies": PAGES["docs/study.md"]}


def blocks(page: str) -> list[tuple[str, str]]:
    """List a page's fenced blocks: language and text."""
    return re.findall(r"```(\w*)\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[str]:
    """List what a page has its reader type after ``python -m lit_gfs``."""
    lines = (line for language, block in blocks(page) if language == "" for line in block.splitlines())
    start = "python -m lit_gfs "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def programs(page: str) -> list[str]:
    """List a page's Python programs."""
    return [block for language, block in blocks(page) if language == "python"]


ROLLOUT = "--data.num_envs=2 --data.rollout_steps=8 --data.total_steps=32 --data.minibatches=2"
REPLAY = "--data.num_envs=2 --data.total_steps=80 --data.learning_starts=40 --data.batch_size=8"
ONE_EPISODE = "--data.eval_episodes=1"
LABELS = "--data.samples=64 --data.batch_size=16 --data.epochs=2 --data.shuffle_every=1"
# Whole episodes of Atari and dm_control take long without a policy worth watching.
NO_EVALUATION = "--trainer.limit_val_batches=0"


def shortened(command: str) -> str:
    """Add what makes a command of a page end within seconds, on a machine without a C++ compiler too."""
    if "--model.compile true" in command:
        return shortened(command.replace("--model.compile true", "--model.compile false"))
    if command.startswith(("configs", "report", "diagnose", "compare")):
        return command
    if command.startswith("search"):
        shortening = "--dry_run true" if "--config studies/" in command else "--trials 1"
        return f"{command.removesuffix(' &')} {shortening}"
    if command.startswith("study"):
        return f"{command} --dry_run true" if "--config studies/" in command else command
    if command.startswith(("validate", "test ")):
        return f"{command} {ONE_EPISODE}"
    if "--ckpt_path" in command:
        return f"{command} --data.total_steps=200"
    if "_offline" in command:
        return f"{command} --data.total_steps=8 --data.batch_size=8 {ONE_EPISODE}"
    if re.search("--config (label_shuffle|permuted_digits)", command):
        return f"{command} {LABELS}"
    if re.search("--config (ppo|pqn)", command):
        return f"{command} {ROLLOUT} {NO_EVALUATION}"
    return f"{command} {REPLAY} {ONE_EPISODE}"


def short_study(has_search: bool) -> str:
    """Return the pages' own study, with their search, with cells that end within seconds."""
    study = next(yaml.safe_load(block) for language, block in blocks("docs/study.md") if language == "yaml")
    options = dict(option.removeprefix("--").split("=") for option in LABELS.split())
    study["when"].append({"where": {"task": list(study["factors"]["task"])}, "options": options})
    study["factors"]["seed"] = study["factors"]["seed"][:1]
    if has_search:
        study |= next(
            yaml.safe_load(block) for language, block in blocks("docs/search.md") if language == "yaml"
        )
    for width, scale in zip((8, 16), study["factors"]["scale"].values(), strict=True):
        scale["options"] |= {"model.trunk.depth": 2, "model.trunk.width": width}
    return yaml.safe_dump(study, sort_keys=False)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"gamma": 0.9}}}))
    Path("my_study.yaml").write_text(short_study(page == "docs/search.md"))

    write_cifar10(tmp_path / "data/cifar-10-batches-bin")

    for command in commands(page):
        main(shlex.split(shortened(command)))

    if page == "docs/training.md":
        assert (tmp_path / "runs/dqn_CartPole-v1/version_0/episode.mp4").stat().st_size > 1_000


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)])
def test_every_python_program_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    for program in programs(page):
        if "runs/dqn_CartPole-v1/version_0/" in program:
            main(shlex.split(shortened("fit --config quickstart")))
        exec(compile(program, page, "exec"), {"__name__": "documentation"})


def test_there_is_something_to_run() -> None:
    assert len(commands("README.md")) >= 5
    assert len(commands("docs/training.md")) >= 10
    assert len(programs("README.md")) == 2
    assert commands("docs/collapse.md")


def test_every_yaml_block_parses() -> None:
    fragments = [
        yaml.safe_load(block) for page in PAGES for language, block in blocks(page) if language == "yaml"
    ]

    assert fragments
    assert all(isinstance(fragment, dict) for fragment in fragments)


def test_every_shipped_config_is_listed() -> None:
    folders = {name: name.rpartition("/")[0] for name in shipped_configs()}

    assert [name for name, folder in folders.items() if f"`{name}`" not in LISTS[folder]] == []


def anchors(page: Path) -> set[str]:
    """Return the names that links may give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.M)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]

    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path) if path else ROOT / page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_every_intervention_has_its_key_on_a_page() -> None:
    assert [key for key in GradientFlowCLI.interventions if f"`gfs.{key}`" not in INTERVENTIONS] == []


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", "\n".join(PAGES.values()), re.MULTILINE))

    assert {"demo", "docs", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
