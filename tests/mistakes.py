"""Wrong arguments and configurations, each with the line that is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.main import main

DQN = [
    "fit",
    "--config=quickstart",
    "--data.total_steps=300",
    "--data.learning_starts=200",
    "--data.eval_every=100",
    "--data.eval_episodes=1",
    "--data.batch_size=16",
    "--model.trunk.width=16",
    "--trainer.enable_progress_bar=false",
]
PPO = [
    "fit",
    "--config=ppo_cartpole",
    "--data.total_steps=32",
    "--data.num_envs=2",
    "--data.rollout_steps=8",
    "--data.minibatches=2",
    "--data.eval_episodes=1",
    "--trainer.enable_progress_bar=false",
]
LABELS = ["fit", "--config=label_shuffle", "--data.samples=64", "--data.batch_size=16", "--data.epochs=1"]

BORING = "lightning.pytorch.demos.boring_classes.Boring"

# After DQN's arguments.
OPTIONS: list[tuple[str, str]] = [
    ("--data.env_id=CartPole-v9", r"unknown environment 'CartPole-v9'.*'CartPole-v1'"),
    ("--data.env_id=", r"unknown environment ''"),
    ("--data.env_id=ALE/Breakuot-v5", r"'ALE/Breakuot-v5'.*'ALE/Breakout-v5'"),
    ("--data.env_id=dm_control/cheeta-run-v0", r"cheeta-run.*cheetah-run"),
    ("--data.env_id=[a]", r"data.env_id is \"\['a'\]\"; expected str"),
    ("--data.env_id=null", r"data.env_id has no value; expected one"),
    ("--data.env_id=evil:CartPole-v1", r"data.env_id is 'evil:CartPole-v1', .* --trust evil"),
    (
        "--data.env_id=lit_gfs:CartPole-v1",
        r"'lit_gfs' is not imported; expected 'CartPole-v1', or type --trust",
    ),
    ("--data.env_id=:CartPole-v1", r"'' is not imported; expected 'CartPole-v1'$"),
    ("--data.env_id=\udcff", r"data.env_id is '.udcff'; expected text in UTF-8"),
    ("--data.num_envs=0", r"num_envs is 0; expected a whole number of at least 1"),
    ("--data.num_envs=1.5", r"data.num_envs is '1.5'; expected int"),
    ("--data.num_envs=null", r"data.num_envs is null; expected int"),
    ("--data.num_envs=[1]", r"data.num_envs is '\[1\]'; expected int"),
    ("--data.num_envs=true", r"data.num_envs is 'True'; expected int"),
    ("--data.num_envs=1000000000", r"1000000000 environments would take .* GB .* this machine has"),
    ("--data.num_envs=10000000000000000000000", r"data.num_envs is 1000.*expected a number of less"),
    ("--data.total_steps=1e999", r"data.total_steps is 'inf'; expected int"),
    ("--data.total_steps=.inf", r"data.total_steps is 'inf'; expected int"),
    ("--data.eval_every=0", r"eval_every is 0; expected a whole number of at least 1"),
    ("--data.eval_episodes=0", r"eval_episodes is 0; expected"),
    ("--data.eval_episodes=1000000000000000", r"eval_episodes 1000000000000000 would take .* GB"),
    ("--data.steps_per_update=1000000", r"steps_per_update is 1000000; expected at most total_steps 300"),
    ("--data.steps_per_update=0", r"steps_per_update is 0; expected"),
    ("--data.batch_size=0", r"batch_size is 0; expected"),
    ("--data.batch_size=1000000000000000", r"batch_size 1000000000000000 would take .* GB"),
    ("--data.buffer_size=1000000000000000", r"buffer_size 1000000000000000 would take .* GB"),
    ("--data.learning_starts=-1", r"learning_starts is -1; expected 0 to 298"),
    ("--data.learning_starts=400", r"learning_starts is 400; expected 0 to 298"),
    ("--data.env_options=[1]", r"data.env_options is '\[1\]'; expected dict"),
    ("--data.env_options={max_episode_steps: x}", r"max_episode_steps is 'x'; expected a whole number"),
    ("--data.env_options={a: 1, a: 2}", r"'a' stands in line 1 and again in line 1"),
    ("--seed_everything=-1", r"seed_everything is -1; expected a whole number from 0"),
    ("--seed_everything=4294967296", r"seed_everything is 4294967296; expected"),
    ("--seed_everything=x", r"seed_everything is 'x'; expected"),
    ("--model.gamma=.nan", r"model.gamma is nan; expected a finite number"),
    ("--model.gamma=", r"model.gamma is ''; expected float"),
    ("--model.init_args.gamma=", r"model.gamma is ''; expected float"),
    ("--model.class_path=", r"model.class_path is ''; expected a class"),
    ("--model=", r"model is ''; expected a class"),
    ("--model=secret", r"model is 'secret', a file of something else; expected a class"),
    ("--trainer.logger=secret", r"trainer.logger is 'secret', a file of something else"),
    ("--\x1b[31mhi=3", r"error: --.x1b\[31mhi is no known option"),
    ("--model.gamma=null", r"model.gamma is null; expected float"),
    ("--model.gamma=[0.9]", r"model.gamma is '\[0.9\]'; expected float"),
    ("--model.reward_scale=1e400", r"model.reward_scale is inf; expected a finite number"),
    ("--model.epsilon_end=-0.1", r"epsilon_end is -0.1; expected a number between 0 and 1"),
    ("--model.double=maybe", r"model.double is 'maybe'; expected bool"),
    ("--trainer.strategy=ddp_spawn", r"strategy is 'ddp_spawn', which hands environments .*; expected 'ddp'"),
    ("--trainer.limit_train_batches=3", r"limit_train_batches is 3; expected none, as data.total_steps and"),
    ("--trainer.limit_train_batches=0", r"limit_train_batches is 0; expected none"),
    ("--trainer.overfit_batches=1", r"overfit_batches is 1; expected none"),
    ("--data.env_options={num_envs: 3}", r"env_options has 'num_envs'; expected data.num_envs instead"),
    ("--data.env_options={env_id: Acrobot-v1}", r"env_options has 'env_id'; expected data.env_id instead"),
    ("--data.env_options={seed: 3}", r"env_options has 'seed'; expected data.seed instead"),
    ("--data.env_options={render: true}", r"env_options has 'render'; expected data.video instead"),
    ("--data.env_options={1: 2}", r"env_options has 1; expected names of options"),
    ("--model.trunk.width=0", r"PlainTrunk needs width >= 1, got 0"),
    ("--model.trunk.width=1000000", r"width 1000000 would take .* GB of memory; this machine has"),
    ("--model.trunk.depth=10000000", r"PlainTrunk has at most 10000 layers, got depth 10000000"),
    ("--model.trunk.activation=sigmoid", r"model.trunk.activation is 'sigmoid'; expected one of 'relu'"),
    ("--model.encoder=NatureCNN", r"NatureCNN reads images .*; use VectorEncoder"),
    (
        "--model.encoder=VectorEncodr",
        r"model.encoder is 'VectorEncodr'; expected a class of Encoder; did .*der'",
    ),
    ("--model.encoder=torch.nn.Linear", r"model.encoder is 'torch.nn.Linear'; expected a class of Encoder"),
    (
        "--model.optimizer=Adm",
        r"model.optimizer is 'Adm'; expected a class of Optimizer; did you mean 'Adam'",
    ),
    ("--model.optimizer=kronn", r"expected a class of Optimizer; did you mean 'lit_gfs.optim.Kron'"),
    (
        "--model.trunk=lit_gfs.networks.MLP",
        r"expected a class of Trunk: DenseTrunk, MultiSkip",
    ),
    (
        "--model.trunk=PlainTrnk",
        r"model.trunk is 'PlainTrnk'; expected a class of Trunk; did you mean 'PlainTrunk'",
    ),
    ("--model.optimizer=torch.load", r"model.optimizer is 'torch.load'; expected a class of Optimizer"),
    ("--model.optimizer=null", r"model.optimizer is null; expected a class"),
    ("--model.optimizer=torch.optim.SparseAdam", r"SparseAdam', which takes sparse gradients.* such as Adam"),
    ("--model.trunk=null", r"model.trunk is null; expected a class"),
    ("--model.trunk=Trunk", r"trunks.Trunk', which has no forward; expected another, such as PlainTrunk"),
    ("--model.encoder=Encoder", r"encoders.Encoder', which has no forward; expected .* VectorEncoder"),
    ("--model.optimizer.lr=x", r"model.optimizer.lr is 'x'; expected float"),
    ("--model.optimizer.betas=[2, 3]", r"model.optimizer: Invalid beta parameter"),
    ("--model=PPO", r"PPO learns from rollouts; use RolloutDataModule"),
    ("--data=RolloutDataModule", r"DQN learns from replay; use ReplayDataModule"),
    (f"--model={BORING}Model", r"model is BoringModel, which ReplayDataModule cannot train; expected DQN"),
    (f"--data={BORING}DataModule", r"data is BoringDataModule, which has no env_spec for DQN; expected Roll"),
    ("--data=LightningDataModule", r"data is LightningDataModule, which has no env_spec for DQN"),
    ("--model=DQNN", r"model is 'DQNN'; expected a class; did you mean 'DQN'"),
    ("--model.trnk.depth=3", r"--model.trnk.depth is no known option; did you mean 'trunk'"),
    ("--trainer.precision=64", r"trainer.precision is 64-true; expected 32-true"),
    ("--trainer.precision=fp16", r"trainer.precision is 'fp16'; expected"),
    ("--trainer.accelerator=tpu", r"trainer: .*torch_xla"),
    ("--trainer.devices=9999", r"trainer.devices is 9999; expected at most"),
    ("--trainer.devices=0", r"trainer: .*devices"),
    ("--trainer.num_nodes=2", r"trainer.num_nodes is 2; expected 1, as nothing tells of other nodes"),
    ("--trainer.strategy=dpp", r"trainer: .*strategy='dpp'"),
    ("--trainer.max_time=soon", r"trainer: .*duration='soon'"),
    ("--trainer.accumulate_grad_batches=0", r"trainer.accumulate_grad_batches is 0; expected"),
    ("--trainer.check_val_every_n_epoch=0", r"trainer.check_val_every_n_epoch is 0; expected"),
    ("--trainer.gradient_clip_val=-1", r"trainer.gradient_clip_val is -1.* expected a number of at least 0"),
    ("--trainer.gradient_clip_val=.nan", r"trainer.gradient_clip_val is nan; expected a finite number"),
    ("--trainer.callbacks=[3]", r"trainer.callbacks is '\[3\]'; expected list\[Callback\]"),
    ("--trainer.callbacks=LearningRateFinder", r"LearningRateFinder', which needs an attribute lr"),
    (
        "--trainer.callbacks=[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.1}}]",
        r"StochasticWeightAveraging', which needs a model that can be copied",
    ),
    ("--trainer.callbacks=WeightAveraging", r"WeightAveraging', which needs a model that can be copied"),
    (
        "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: eval/return}}]",
        r"callbacks.0.monitor is 'eval/return'; expected one of .*; did you mean 'eval/episode_return'",
    ),
    (
        "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {monitor: nope}}]",
        r"trainer.callbacks.0.monitor is 'nope'; expected one of epoch, eval/episode_length",
    ),
    (
        "--trainer.callbacks=[{class_path: LambdaCallback, init_args: {on_fit_start: torch.nn.ReLU}}]",
        r"trainer.callbacks.0.on_fit_start is a ReLU, which is no hook; expected a function",
    ),
    (
        "--trainer.callbacks=[{class_path: LambdaCallback, init_args: {on_fit_start: {class_path: "
        f"{BORING}Model.load_from_checkpoint, init_args: {{checkpoint_path: x}}}}}}}}]",
        r"load_from_checkpoint'; expected a network, .* unless you type --trust lightning",
    ),
    ("--trainer.logger=3", r"trainer.logger is '3'; expected Logger"),
    ("--trainer.plugins=[x]", r"trainer.plugins is 'x'; expected a class"),
    ("--run.version=../x", r"--run.version is '../x'; expected the name of one directory"),
    ("--run.version=a/b", r"--run.version is 'a/b'; expected"),
    ("--run.name=\udcff", r"run.name is '.udcff'; expected text in UTF-8"),
    ("--run.root=\udcff", r"run.root is '.udcff'; expected text in UTF-8"),
    ("--run.name=..", r"--run.name is '..'; expected"),
    ("--run.root=afile", r"--run.root 'afile' cannot be written \(Not a directory\)"),
    (f"--run.version={'x' * 300}", r"cannot be written \(File name too long\)"),
    ("--run.vers=x", r"--run.vers is no known option; did you mean '--run.version'"),
    ("--threads=0", r"threads is '0'; expected a whole number of at least 1"),
    ("--threads=1000000", r"threads is 1000000; expected at most 1024"),
    ("--treads=1", r"--treads is no known option; did you mean '--threads'"),
    ("--weights_only=false", r"--weights_only is no known option"),
    ("--config=adir", r"--config 'adir' is a directory"),
    (f"--config={'x' * 5000}", r"not found; expected a YAML file"),
    ("--ckpt_path=adir", r"--ckpt_path 'adir' holds no intact checkpoint"),
    ("--trust=a-b", r"--trust 'a-b' is no package"),
    ("--trust=jsonargparse", r"--trust jsonargparse: .*can't be allowed"),
    ("--trust", r"--trust has no value"),
    ("--config", r"--config has no value"),
    ("stray", r"stray is no known option"),
    ("--gfs.gradient_flow=3", r"gfs.gradient_flow is '3'; expected GradientFlowMonitor or null"),
]

# The content of a second configuration, after DQN's arguments.
FILES: list[tuple[str, str]] = [
    ("", r"--config 'mine.yaml' is empty; expected keys such as model"),
    ("- a", r"--config 'mine.yaml' is a list; expected keys"),
    ("hello", r"--config 'mine.yaml' is 'hello'; expected keys"),
    ("model: {}\nmodel: {}", r"'mine.yaml': 'model' stands in line 1 and again in line 2"),
    ("data:\n\tinit_args: 1", r"'mine.yaml' is no YAML: line 2: found a tab; expected spaces"),
    ("data: [1", r"'mine.yaml' is no YAML: line 2: "),
    ("data: &x [*x]", r"'mine.yaml': line 1: \*x stands within what it stands for"),
    ("[" * 1000, r"nested more than 50 levels deep"),
    (
        "a: &a [" + "1," * 400 + "]\nb: &b [" + "*a," * 400 + "]\nc: [" + "*b," * 400 + "]",
        r"line 2 makes it stand for more than 100,000 values",
    ),
    ("a: !!python/object/apply:os.system [ls]", r"could not determine a constructor"),
    ("x: " + "9" * 5000, r"'mine.yaml' is no YAML: Exceeds the limit"),
    ("# " + "x" * 1_000_000, r"'mine.yaml' is larger than 1,000,000 bytes"),
    ("model: null", r"model not given"),
    ("data: 3", r"data is '3'; expected LightningDataModule"),
    ("trainer: null", r"trainer is null; expected keys such as accelerator"),
    ("trainer: 5", r"trainer is 5; expected keys"),
    ("trainer: {devces: {}}", r"trainer.devces is no known key; did you mean 'devices'"),
    ("trainer: {1: 2}", r"trainer.1 is no known key; expected text, not 1"),
    ('"\\e[31mhi": 3', r"error: .x1b\[31mhi is no known key"),
    ("model: secret", r"model is 'secret', a file of something else; expected a class"),
    ("trust: evil", r"trust cannot be set in a configuration; type it"),
    ("weights_only: false", r"weights_only is no known key"),
    ("model: {init_args: {trnk: {}}}", r"model.trnk is no known key; did you mean 'trunk'"),
    ("model: {trnk: {}}", r"model.trnk is no known key; did you mean 'trunk'"),
    (
        "model: {init_args: {trunk: {init_args: {dpth: {}}}}}",
        r"model.trunk.dpth is no known key; did .*'depth'",
    ),
    ("model: {init_args: {trunk: {init_arg: {}}}}", r"model.trunk.init_arg is no known key"),
    ("data: {init_args: {env_opts: {}}}", r"data.env_opts is no known key; did you mean 'env_options'"),
    ("gfs: {gradient_flow: {init_args: {every: {}}}}", r"gfs.gradient_flow.every is no known key"),
]

# Whole command lines.
COMMANDS: list[tuple[list[str], str]] = [
    (["fiit"], r"'fiit' is no subcommand; .*did you mean 'fit'"),
    ([], r"no subcommand; expected fit, validate or test"),
    (["fit"], r"data and model not given; name a configuration, as in: fit --config quickstart"),
    (["--config=quickstart", "fit"], r"--config stands before the subcommand; .* as in: fit --config"),
    (["--seed_everything", "1", "fit"], r"--seed_everything stands before the subcommand"),
    (["report"], r"directory not given; lit_gfs report --help says what it is"),
    (["report", "x" * 5000], r"has no study.yaml; expected the directory of a study that ran"),
    (["validate"], r"data and model not given; .* as in: validate --config"),
    (["validate", "--ckpt_path=none.ckpt"], r"--ckpt_path 'none.ckpt' not found"),
    ([*PPO, "--model=lit_gfs.agents.DQN"], r"DQN learns from replay; use ReplayDataModule"),
    ([*PPO, "--model.clip=-1"], r"clip is -1.0; expected"),
    ([*PPO, "--data.minibatches=17"], r"minibatches is 17, more than the 16 transitions"),
    ([*PPO, "--data.rollout_steps=1000000000000"], r"rollout_steps 1000000000000 would take .* GB"),
    ([*PPO, "--model.lambda_=1.5"], r"lambda_ is 1.5; expected a number between 0 and 1"),
    (
        [*DQN, "--gfs.path_init={}", "--gfs.path_init.mirrored=true", "--model.trunk.width=15"],
        r"needs layers of even width, .*has 15 outputs; expected 14 or 16",
    ),
    (
        [*DQN, "--trainer.gradient_clip_val=null", "--gfs.temporal_clipping.init_args.decay=2"],
        r"decay is 2.0; expected a number between 0 and 1",
    ),
    (
        [*DQN, "--data.env_id=ALE/Pong-v5", "--data.env_options={repeat_action_probability: x}"],
        r"'ALE/Pong-v5' does not take env_options \{'repeat_action_probability': 'x'\}",
    ),
    ([*LABELS, "--data.dataset=null"], r"data.dataset is null; expected one of 'digits', 'cifar10'"),
    ([*LABELS, "--data.samples=0"], r"samples is 0; expected"),
    ([*LABELS, "--trainer.overfit_batches=1"], r"trainer.overfit_batches is 1; expected none, as labels are"),
    (
        [*LABELS, "--trainer.val_check_interval=00:00:10:00"],
        r"trainer.val_check_interval is a time; expected 1.0, as data.eval_every",
    ),
    (["validate", *LABELS[1:], "--trainer.precision=bf16-true"], r"trainer.precision is bf16-true; expected"),
    ([*LABELS, "--data.batch_size=65"], r"batch_size is 65; expected at most the 64 images"),
    ([*LABELS, "--data.dataset=mnist"], r"data.dataset is 'mnist'; expected one of 'digits', 'cifar10'"),
    (["study"], r"--config is missing"),
    (["study", "--config=quickstart"], r"'model' is no known key"),
    (["study", "--config=studies/smoke", "--jobs=1e9"], r"jobs is '1e9'; expected a whole number of at"),
    (["study", "--config=studies/smoke", "--threads=0"], r"threads is '0'; expected a whole number of at"),
    (["study", "--config=studies/smoke", "--jobs=0"], r"jobs is '0'; expected a whole number of at least 1"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that is refused; return the line."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith("lit_gfs: error: ")
    assert len(line) < 1000 or "x" * 1000 in line
    assert sorted(Path.cwd().rglob("*")) == before
    return line
