"""The command line: what it answers, how fast, and how it speaks of what is wrong."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from mtlbench import __version__
from mtlbench.check import ConfigError, check, check_types
from mtlbench.cli import COMMANDS, main
from mtlbench.confdir import KINDS, conf_dir, entries
from mtlbench.launch.app import folder_name

ROOT = Path(__file__).parent.parent
Cli = Callable[..., tuple[int, str, str]]
HEAVY = {"torch", "lightning", "pytorch_lightning", "numpy", "pandas", "scipy", "transformers", "wandb", "datasets"}


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Hydra configures logging for the process; the next test must not write to this one's closed streams."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a stand-in for `mtlbench.train` in place; what it was called with."""
    calls: list[dict[str, Any]] = []

    def train(cfg: DictConfig, *, method: str | None, run_dir: Path, overrides: list[str]) -> float:
        calls.append({"cfg": cfg, "method": method, "run_dir": run_dir, "overrides": overrides})
        if cfg.seed == 13:
            raise ValueError("digits: label 12 in row 3, expected 0 to 9")
        if cfg.seed == 14:
            raise ZeroDivisionError("a bug")
        if cfg.seed == 15:
            sys.exit(3)
        if cfg.seed == 16:
            raise KeyboardInterrupt
        return 0.5

    module = types.ModuleType("mtlbench.train")
    vars(module)["train"] = train
    monkeypatch.setitem(sys.modules, "mtlbench.train", module)
    return calls


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], _loggers: None) -> Cli:
    """Calls the command in an empty folder; exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MTLBENCH_DATA", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["mtlbench"])

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as left:  # argparse's own way out
            status = int(left.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call


def in_process(*arguments: str, cwd: Path, before: str = "", **env: str) -> subprocess.Popen[str]:
    """Starts the command in a Python of its own, which at its end prints the heavy modules it holds to stderr."""
    code = (
        f"import sys, atexit; atexit.register(lambda: print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), file="
        f"sys.stderr))\n{before}\nsys.argv[0] = 'mtlbench'\nfrom mtlbench.cli import main\nsys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["--help"], 0, "mtlbench train -m"),
        (["--version"], 0, __version__),
        (["list"], 0, "pcgrad"),
        (["list", "balancers"], 0, "no task gradient has a negative product"),
        (["train", "--help"], 0, "Choose one of each group"),
        (["train", "--cfg", "job", "balancer=pcgrad"], 0, "benchmark:"),
        (["train", "balancer=pcgrd"], 2, "Did you mean pcgrad"),
        (["train", "trainer.max_epochs=abc"], 2, "expected a whole number"),
        (["train", "tasks=[left,rigt]"], 2, "Did you mean right"),
        (["train", "-m", "seed=0,x"], 2, "No job was started"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_quickly_and_imports_nothing_heavy(
    tmp_path: Path, arguments: list[str], status: int, expected: str
) -> None:
    start = time.perf_counter()
    process = in_process(*arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert expected in out + err
    assert err.rstrip().endswith("HEAVY []")
    # Under 1 s on an idle machine; the modules above are what keeps it there.
    assert time.perf_counter() - start < 10


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtlbench", "--version"]
    out = subprocess.check_output(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert out.strip() == f"mtlbench {__version__}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("balancer=pcgrd", "no balancer 'pcgrd'. Did you mean pcgrad"),
        ("benchmark=multidigit", "no benchmark 'multidigit'. Did you mean multidigits"),
        ("experiment=dmo", "no experiment 'dmo'. Did you mean demo?"),
        ("sharing=sft", "no sharing 'sft'. There is:"),
        ("hydra/launcher=basci", "no hydra/launcher 'basci'. Did you mean basic?"),
        ("balncer=pcgrad", "no key 'balncer' in the config. Did you mean balancer?"),
        ("experimnt=demo", "no key 'experimnt' in the config. Did you mean experiment?"),
        ("trainer.max_epoch=3", "no key 'trainer.max_epoch' in the config. Did you mean trainer.max_epochs"),
        ("max_epochs=3", "no key 'max_epochs' in the config. Did you mean trainer.max_epochs"),
        ("engine.zzz=3", "no key 'engine.zzz' in the config. engine holds: heads, normalize, measure."),
        ("qqqqqqq=3", "no key 'qqqqqqq' in the config. `--cfg job` shows the keys."),
        ("hydra.run.dirr=x", "Did you mean hydra.run.dir?"),
        ("seed", "cannot read the override 'seed'"),
        ("seed={", "cannot read the override 'seed={'"),
        ("seed=0,1", "add --multirun"),
        ("tasks=[left,rigt]", "no task 'rigt'. Did you mean right?"),
        ("tasks=[left,left]", "each once"),
        ("tasks=[]", "at least one"),
        ("tasks=left", "expected a list: tasks=[left]"),
        ("head_lr={rigth: 0.1}", "head_lr names the task 'rigth'. Did you mean right?"),
        ("head_lr=fast", "expected a number, or numbers by task"),
        ("selection.monitor=val/scor", "selection.monitor=val/scor. Did you mean val/score"),
        ("selection.monitor=val/lft/accuracy", "There is: val/score, val/loss, val/left, val/right"),
        ("seed=x", "seed=x: expected a whole number"),
        ("seed=1.5", "seed=1.5: expected a whole number"),
        ("seed=-1", "seed=-1: expected a whole number of at least 0"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc: expected a whole number"),
        ("trainer.enable_progress_bar=3", "expected true or false as in the default"),
        ("data.batch_size=0", "data.batch_size=0: expected a whole number of at least 1"),
        ("data.batch_size=true", "data.batch_size=true: expected a whole number"),
        ("data.batch_size=null", "data.batch_size=null: expected a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
        ("engine.heads=wieghted", "engine.heads=wieghted: Did you mean weighted?"),
        ("trainer.devices=2", "trainer.devices=2: training on several devices is not there yet"),
        ("+trainer.num_nodes=2", "several nodes is not there yet"),
        ("+trainer.strategy=deepspeed", "only auto is there yet"),
        ("encoder=pretrained", "no value for encoder.model: give encoder.model=..."),
        ("data.dir=${oc.env:MTLBENCH_NOWHERE}", "data.dir cannot be resolved"),
        ("sharing=independent", "have nothing to balance"),
    ],
)
def test_a_wrong_override_is_named_with_the_nearest_right_one(
    cli: Cli,
    trained: list[dict[str, Any]],
    override: str,
    expected: str,
    tmp_path: Path,
) -> None:
    more = ["balancer=pcgrad"] if override == "sharing=independent" else []
    status, out, err = cli("train", override, *more)
    assert status == 2
    assert expected in err
    assert "Traceback" not in out + err
    assert not trained
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--help"], ["--info", "defaults"], ["-m"]], ids=" ".join)
def test_every_way_in_explains_errors(cli: Cli, flags: list[str]) -> None:
    status, out, err = cli("train", *flags, "balancer=pcgrd")
    assert (status, "Traceback" in out + err) == (2, False)
    assert "Did you mean pcgrad" in err


@pytest.mark.parametrize("flags", [[], ["--cfg", "job"], ["--help"], ["-m"]], ids=" ".join)
def test_malformed_yaml_is_shown_with_its_line(cli: Cli, tmp_path: Path, flags: list[str]) -> None:
    path = tmp_path / "mine" / "balancer" / "broken.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# mine\nalpha: 1\n beta: [2\n")
    status, out, err = cli("train", "--config-dir", "mine", *flags, "balancer=broken")
    assert (status, "Traceback" in out + err) == (2, False)
    assert f"malformed YAML in {path}, line 3, column" in err
    assert "\n   beta: [2\n" in err


def test_a_misspelt_command_or_list(cli: Cli) -> None:
    assert cli("trian")[0::2] == (
        2,
        f"mtlbench: no command 'trian'. Did you mean train? There is: {', '.join(COMMANDS)}.\n",
    )
    status, _, err = cli("list", "balancrs")
    assert status == 2
    assert "no list 'balancrs'. Did you mean balancers?" in err


def test_traceback_on_demand(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(hydra.errors.MissingConfigException):
        cli("train", "balancer=pcgrd")


def test_a_run(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    status, _, err = cli("train", "balancer=pcgrad", "seed=7", "tasks=[right]")
    assert status == 0, err
    (call,) = trained
    assert call["method"] == "pcgrad"
    assert call["overrides"] == ["balancer=pcgrad", "seed=7", "tasks=[right]"]
    assert (call["cfg"].seed, list(call["cfg"].tasks), "hydra" in call["cfg"]) == (7, ["right"], False)
    assert call["run_dir"].parent == tmp_path / "runs" / "multidigits"
    assert call["run_dir"].name.endswith("_pcgrad_seed=7")
    assert (call["run_dir"] / ".hydra" / "overrides.yaml").exists()
    assert Path.cwd() == tmp_path


def test_types_that_may_change(cli: Cli, trained: list[dict[str, Any]]) -> None:
    given = [
        "head_lr={left: 0.1}",
        "selection.monitor=val/left/accuracy",
        "optimizer.lr=1",
        "trainer.devices=[0]",
        "trainer.precision=16",
        "trainer.gradient_clip_val=0.5",
    ]
    status, _, err = cli("train", *given, "+mine.key=text", "+trainer.profiler=simple")
    assert status == 0, err
    assert trained[0]["cfg"].mine.key == "text"


@pytest.mark.parametrize(
    ("seed", "status", "told", "logged"),
    [
        (13, 1, "mtlbench train: digits: label 12 in row 3", "ValueError: digits: label 12"),
        (14, 1, "mtlbench train: ZeroDivisionError: a bug", "ZeroDivisionError: a bug"),
        (15, 1, "The run left by sys.exit(3).", ""),
        (16, 130, "mtlbench: interrupted", ""),
    ],
)
def test_a_failing_run_is_told_in_a_line_and_logged_with_its_traceback(
    cli: Cli,
    trained: list[dict[str, Any]],
    seed: int,
    status: int,
    told: str,
    logged: str,
) -> None:
    got, out, err = cli("train", f"seed={seed}")
    assert got == status
    assert told in err
    assert "Traceback (most recent call last)" not in out + err
    log = (trained[0]["run_dir"] / "train.log").read_text()
    assert logged in log
    assert ("Traceback (most recent call last)" in log) == bool(logged)


def test_a_sweep_outlives_failing_jobs(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    status, _, err = cli("train", "-m", "balancer=equal,pcgrad", "seed=1,13,14,15", "hydra.sweep.dir=mine")
    assert status == 1
    assert len(trained) == 8
    assert trained[-1]["run_dir"] == tmp_path / "mine" / "balancer=pcgrad,seed=15"
    assert "6 of the sweep's jobs failed" in err
    for balancer in ("equal", "pcgrad"):
        for seed, error in ((13, "label 12 in row 3"), (14, "ZeroDivisionError: a bug"), (15, "sys.exit(3)")):
            block = err.split(f"  balancer={balancer} seed={seed}\n")[1].split("\n\n")[0]
            assert f"mine/balancer={balancer},seed={seed}" in block
            assert error in block
    assert "seed=1\n" not in err
    # The list does not leak into the next sweep.
    assert cli("train", "-m", "seed=1,2", "hydra.sweep.dir=mine")[0] == 0


def test_a_sweep_stops_at_an_interrupt(cli: Cli, trained: list[dict[str, Any]]) -> None:
    status, _, err = cli("train", "-m", "seed=1,16,2")
    assert (status, len(trained)) == (130, 2)
    assert "interrupted" in err


@pytest.mark.parametrize(
    "override", ["balancer=equal,pcgrd", "seed=0,x", "tasks=[left],[lft]", "trainer.max_epoch=1,2", "optimizer.lr=1,-1"]
)
def test_no_job_of_a_sweep_starts_where_one_cannot(cli: Cli, trained: list[dict[str, Any]], override: str) -> None:
    status, out, err = cli("train", "-m", override)
    assert (status, trained) == (2, [])
    assert "Traceback" not in out + err
    assert "Warning" not in out + err


def test_the_demo_is_a_sweep_by_itself(cli: Cli, trained: list[dict[str, Any]]) -> None:
    status, _, err = cli("train", "experiment=demo")
    assert status == 0, err
    methods = ["independent", "equal", "uncertainty", "gradnorm", "pcgrad"]
    assert [(call["method"], call["cfg"].seed) for call in trained] == [(m, s) for m in methods for s in range(3)]
    assert all(call["cfg"].sharing._target_.endswith(".Independent") for call in trained[:3])
    assert len({call["run_dir"] for call in trained}) == 15


def test_configs_of_ones_own(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "balancer"
    folder.mkdir(parents=True)
    (folder / "my_method.yaml").write_text("# Mine.\n_target_: my.Method\nalpha: 0.5\n")
    for where in (["hydra.searchpath=[file://mine]"], ["--config-dir", "mine"]):
        assert cli("train", *where, "balancer=my_method", "balancer.alpha=1")[0] == 0
        assert trained[-1]["method"] == "my_method"
        assert trained[-1]["cfg"].balancer.alpha == 1
        status, _, err = cli("train", *where, "balancer=my_method", "balancer.alpha=a")
        assert (status, "balancer.alpha=a: expected a number" in err) == (2, True)


def test_compose_from_a_notebook() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("train", ["balancer=independent", "benchmark=snips", "trainer.max_epochs=2"])
    assert cfg.sharing._target_.endswith(".Independent")
    assert (cfg.benchmark.name, cfg.trainer.max_epochs) == ("snips", 2)
    check(cfg)


@pytest.mark.parametrize(
    "override", [f"{group}={entry.name}" for group in ("benchmark", "balancer") for entry in entries(group)]
)
def test_every_benchmark_and_balancer_composes(override: str) -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check(hydra.compose("train", [override]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtlbench tr", list(COMMANDS)),
        ("mtlbench list b", list(KINDS)),
        ("mtlbench train bal", ["balancer="]),
        ("mtlbench train seed=1 sharing=", ["sharing=hard", "sharing=independent", "sharing=shared_private"]),
        ("mtlbench train engine.", ["engine.heads=", "engine.measure=", "engine.normalize="]),
        ("mtlbench report ", []),
    ],
)
def test_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    status, out, _ = cli("-sc", "query=bash")
    assert (status, [word for word in out.split() if not word.startswith("balancer.")]) == (0, expected)
    assert "hydra_bash_completion mtlbench" in cli("-sc", "install=bash")[1]


def test_report_hands_over_to_results(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    module = types.ModuleType("mtlbench.results.report")
    vars(module).update(
        report=lambda paths, out: seen.append((paths, out)) or "written",
        print_report=lambda written, console: console.print(written),
    )
    monkeypatch.setitem(sys.modules, "mtlbench.results.report", module)
    assert cli("report", "a", "b")[:2] == (0, "written\n")
    assert cli("report", "a", "--out", "c")[0] == 0
    assert seen == [([Path("a"), Path("b")], Path("a")), ([Path("a")], Path("c"))]


def test_report_of_nothing(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("report", "nowhere")
    assert (status, "Traceback" in out + err) == (2, False)
    assert "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


def test_ctrl_c_leaves_without_a_traceback(tmp_path: Path) -> None:
    stub = (
        "import types, time; module = types.ModuleType('mtlbench.train'); sys.modules['mtlbench.train'] = module\n"
        "module.train = lambda *a, **k: (print('started', flush=True), time.sleep(60))"
    )
    process = in_process("train", "-m", "seed=0,1", cwd=tmp_path, before=stub)
    assert process.stdout is not None
    while "started" not in (line := process.stdout.readline()):
        assert line, "the run did not start"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "mtlbench: interrupted" in err
    assert "Traceback" not in out + err
    assert "started" not in out


@pytest.mark.parametrize("command", ["list", "train --cfg job"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, command: str) -> None:
    process = in_process(*command.split(), cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(timeout=30)
    assert err == "HEAVY []\n"


def test_folder_names_fit_a_file_system() -> None:
    assert folder_name("seed=0,tasks=[a,b]") == "seed=0,tasks=[a,b]"
    assert folder_name("encoder.model=org/name") == "encoder.model=org_name"
    assert folder_name("") == "defaults"
    long = [folder_name(",".join(f"key{i}=value" for i in range(n))) for n in (50, 51)]
    assert all(len(name.encode()) < 255 for name in long)
    assert long[0] != long[1]


def test_types_are_compared_with_the_defaults() -> None:
    defaults = {"rate": 1, "name": "a", "deep": {"on": True, "sizes": [1], "later": "${x}", "free": None}}
    for fits in (
        {"rate": 0.5},
        {"rate": None},
        {"name": 16},
        {"deep": None},
        {"deep": {"sizes": [], "later": 3, "free": [1]}},
        {"rate": "${y}", "new": 1},
    ):
        check_types(fits, defaults)
    for given, key in (
        ({"rate": "a"}, "rate=a: expected a whole number"),
        ({"rate": True}, "rate=true"),
        ({"name": [1]}, "name="),
        ({"deep": 3}, "deep=3: expected a mapping"),
        ({"deep": {"on": 1}}, "deep.on=1: expected true or false"),
        ({"deep": {"sizes": 1}}, "deep.sizes=1: expected a list"),
    ):
        with pytest.raises(ConfigError, match=key):
            check_types(given, defaults)


def test_check_needs_a_benchmark() -> None:
    with pytest.raises(ConfigError, match="benchmark=NAME"):
        check(OmegaConf.create({"seed": 0}))
