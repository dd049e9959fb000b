"""Recipes from files and flags: what is read, and what is said about what cannot be."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.cells import Cell, ContractiveCell, TrellisCell
from equilibria.configuration import (
    Recipe,
    RunRecipe,
    TrainingRecipe,
    checked,
    read_recipe,
    recipe_from,
    table_of,
    write_recipe,
)
from equilibria.configuration.comparing import settings as settings_of
from equilibria.configuration.kinds import Family, alternatives, family_of, options
from equilibria.data import CopyMemory, EmbeddedText, FilesText, FolderText, TokenizerSpec
from equilibria.depths import Depth, DepthSchedule, Equilibrium, GrowingLimits, Limits, ResidualPenalty, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Gradient, Implicit, Phantom, Reversible, Unrolled
from equilibria.models import LanguageModelRecipe
from equilibria.nn import AdaptiveEmbedding, TokenEmbedding
from equilibria.optimization import (
    SGD,
    AdamW,
    Averaging,
    Exponential,
    Muon,
    Optimizer,
    Schedule,
    Uniform,
    WarmupStableDecay,
)
from equilibria.solvers import AdjointSolver, Anderson, Draft, Picard, Solver

NAMED = '[run]\nname = "x"\n'
PICARD = '[model.depth.solver]\nmethod = "picard"\ntol = 0.1\nmax_evaluations = 3\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(NAMED + "[training]\nsteps = 7\n" + PICARD, encoding="utf-8")
    return path


def model_of(found: Recipe) -> LanguageModelRecipe:
    assert isinstance(found.model, LanguageModelRecipe)
    return found.model


def depth_of(found: Recipe) -> Equilibrium:
    depth = model_of(found).depth
    assert isinstance(depth, Equilibrium)
    return depth


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(NAMED + text, encoding="utf-8")
    return path


def test_a_file_gives_its_values_and_defaults_for_the_rest(recipe: Path) -> None:
    found = read_recipe(recipe)
    assert (found.run.name, found.training.steps) == ("x", 7)
    assert depth_of(found).solver == Picard(tol=0.1, max_evaluations=3, scope="prefix")
    assert depth_of(found).eval_solver == Equilibrium().eval_solver
    assert found.training == TrainingRecipe(steps=7)
    assert found.run.folder == Path("runs/x")


def test_an_empty_recipe_is_the_default_one(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, ""))
    assert found.data == EmbeddedText()
    assert depth_of(found) == Equilibrium()
    assert model_of(found).cell.func is ContractiveCell
    assert found.training == TrainingRecipe()


def test_a_flag_has_the_last_word(recipe: Path) -> None:
    found = read_recipe(recipe, ["--training.steps", "8", "--model.depth.solver.tol=0.5", "--run.name", "y"])
    assert (found.training.steps, found.run.name) == (8, "y")
    assert depth_of(found).solver == Picard(tol=0.5, max_evaluations=3, scope="prefix")


def test_a_flag_that_comes_again_has_the_last_word(recipe: Path) -> None:
    assert read_recipe(recipe, ["--training.steps", "8", "--training.steps", "9"]).training.steps == 9


def test_a_list_and_a_switch_as_flags(recipe: Path) -> None:
    flags = ["--data.source", "files", "--data.files", "a b", "--data.files", "c", "d"]
    found = read_recipe(recipe, [*flags, "--model.depth.gradient.checkpoint"])
    assert isinstance(found.data, FilesText)
    assert found.data.files == (Path("a b"), Path("c"), Path("d"))
    assert depth_of(found).gradient == Phantom(checkpoint=True)
    without = read_recipe(recipe, ["--model.depth.gradient.checkpoint=false", "--model.embedding", "adaptive"])
    assert depth_of(without).gradient == Phantom()
    cutoffs = ["--model.embedding.kind=adaptive", "--model.embedding.cutoffs", "[10, 20]"]
    assert model_of(read_recipe(recipe, cutoffs)).embedding.keywords["cutoffs"] == (10, 20)


def test_a_kind_alone_stands_for_its_section(tmp_path: Path) -> None:
    text = '[training]\noptimizer = "muon"\naveraging = "uniform"\n[data]\nsource = "copy_memory"\n'
    found = read_recipe(written(tmp_path, text), ["--training.schedule", "constant", "--data.blanks", "9"])
    assert found.training.optimizer == Muon()
    assert found.training.averaging == Uniform()
    assert found.data == CopyMemory(blanks=9)
    assert table_of(found.training.schedule)["kind"] == "constant"
    words = read_recipe(written(tmp_path, '[data]\ntokenizer = "word"\n')).data
    assert words == EmbeddedText(tokenizer=TokenizerSpec("word"))


def test_the_kind_and_an_option_of_it_in_two_flags(recipe: Path) -> None:
    found = read_recipe(recipe, ["--training.optimizer.momentum", "0.5", "--training.optimizer", "sgd"])
    assert found.training.optimizer == SGD(momentum=0.5)


def test_what_is_not_said_of_another_method_stays_as_for_all_solvers(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, '[model.depth.solver]\nmethod = "anderson"\nhistory = 5\n'))
    usual = Equilibrium().solver
    assert depth_of(found).solver == Anderson(
        tol=usual.tol, max_evaluations=usual.max_evaluations, scope="prefix", history=5
    )


def test_another_gradient_or_optimizer_has_its_own_defaults(tmp_path: Path) -> None:
    text = '[model.depth]\ngradient = "reversible"\n[training]\noptimizer = "sgd"\n'
    found = read_recipe(written(tmp_path, text))
    assert depth_of(found).gradient == Reversible()
    assert found.training.optimizer == SGD()
    unrolled = read_recipe(written(tmp_path, '[model.depth.gradient]\nmethod = "unrolled"\n'))
    assert depth_of(unrolled).gradient == Unrolled()


def test_keys_of_a_kind_that_a_flag_replaced_are_dropped_with_a_word(tmp_path: Path) -> None:
    cell = '[model.cell]\nkind = "contractive"\nd_model = 24\nheads = 2\ndropout = 0.25\n'
    path = written(tmp_path, cell)
    with pytest.warns(UserWarning, match=r"model\.cell\.heads"):
        found = read_recipe(path, ["--model.cell.kind", "trellis"])
    assert model_of(found).cell.func is TrellisCell
    assert {name: model_of(found).cell.keywords[name] for name in ("d_model", "dropout")} == {
        "d_model": 24,
        "dropout": 0.25,
    }
    folder = written(tmp_path, '[data]\nsource = "folder"\npath = "p"\ntokenizer = "bytes"\n')
    with pytest.warns(UserWarning, match=r"data\.path"):
        data = read_recipe(folder, ["--data.source", "files", "--data.files", "a"]).data
    assert data == FilesText((Path("a"),), tokenizer=TokenizerSpec("bytes"))


def test_a_twin_is_one_flag(recipe: Path) -> None:
    with pytest.warns(UserWarning, match=r"model\.depth\.solver"):
        found = read_recipe(recipe, ["--model.depth", "unrolled"])
    assert model_of(found).depth == UnrolledDepth()


def test_a_key_can_be_unset(recipe: Path) -> None:
    found = read_recipe(recipe, ["--unset", "training.steps", "model.depth.solver"])
    assert found.training == TrainingRecipe()
    assert depth_of(found) == Equilibrium()
    with pytest.raises(UserError, match=r"--unset training\.seed: .* does not set it"):
        read_recipe(recipe, ["--unset", "training.seed"])


def test_none_is_a_value_where_a_section_may_be_left_out(tmp_path: Path) -> None:
    text = '[training.averaging]\nkind = "exponential"\ndecay = 0.5\n[model]\ndropout = 0.5\n'
    path = written(tmp_path, text)
    assert read_recipe(path).training.averaging == Exponential(decay=0.5)
    found = read_recipe(path, ["--training.averaging", "none", "--model.dropout", "none"])
    assert found.training.averaging is None
    assert model_of(found).dropout is None


def test_a_section_that_may_be_left_out_is_there_by_true(recipe: Path) -> None:
    found = read_recipe(recipe, ["--model.depth.solver.draft", "--model.depth.eval_solver.draft.max_evaluations", "6"])
    assert depth_of(found).solver.draft == Draft()
    assert depth_of(found).eval_solver.draft == Draft(max_evaluations=6)


def test_a_fallback_takes_over_scope_and_tolerance(recipe: Path) -> None:
    found = read_recipe(recipe, ["--model.depth.solver.fallback", "anderson", "--model.depth.solver.tol", "0.5"])
    assert depth_of(found).solver.fallback == Anderson(tol=0.5, scope="prefix")
    own = read_recipe(recipe, ["--model.depth.solver.fallback", "picard", "--model.depth.solver.fallback.tol", "0.25"])
    assert depth_of(own).solver.fallback == Picard(tol=0.25, scope="prefix")


def test_somebody_elses_optimizer(recipe: Path) -> None:
    flags = ["--training.optimizer", "torch.optim:Adagrad", "--training.optimizer.lr_decay", "0.5"]
    found = read_recipe(recipe, flags)
    optimizer = found.training.optimizer
    assert isinstance(optimizer, partial)
    assert (optimizer.func, optimizer.keywords["lr_decay"]) == (torch.optim.Adagrad, 0.5)
    assert table_of(recipe_from(table_of(found), "again")) == table_of(found)


def test_a_recipe_is_changed_by_flags() -> None:
    found = checked(Recipe(run=RunRecipe(name="x")), ["--data.source", "folder", "--data.path", "p"])
    assert found.data == FolderText(Path("p"))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
paths = texts.filter(lambda text: "\0" not in text and text != "none").map(Path)
rates = st.floats(1e-300, 1e300)
counts = st.integers(1, 2**63 - 1)
printable = st.characters(exclude_categories=["C", "Z"], exclude_characters="/")
names = st.text(printable, min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))


@settings(max_examples=25, deadline=None)
@given(
    run=st.builds(RunRecipe, name=names, directory=paths),
    data=st.builds(
        FilesText,
        files=st.lists(paths, min_size=1, max_size=3).map(tuple),
        tokenizer=st.builds(TokenizerSpec, vocabulary_size=st.none() | st.integers(257, 2**63 - 1)),
        cache=paths,
    ),
    training=st.builds(
        TrainingRecipe,
        steps=counts,
        learning_rate=rates,
        optimizer=st.builds(Muon, momentum=st.floats(0, 1, exclude_max=True)),
        schedule=st.builds(WarmupStableDecay, decay_steps=st.none() | counts),
        averaging=st.none() | st.builds(Uniform, start=st.none() | st.integers(0, 2**63 - 1)),
        threads=st.none() | st.integers(1, 1024),
    ),
    solver=st.builds(Anderson, tol=rates, max_evaluations=counts, ridge=st.just(0.0) | rates, scope=st.just("prefix")),
    gradient=st.builds(Phantom, steps=counts, checkpoint=st.booleans()) | st.just(Implicit(Picard(tol=0.5))),
)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    run: RunRecipe,
    data: FilesText,
    training: TrainingRecipe,
    solver: Anderson,
    gradient: Phantom | Implicit,
) -> None:
    schedule = DepthSchedule(warmup_steps=3, limits=GrowingLimits(1, 9), residual=ResidualPenalty(0.5, 0.25))
    depth = Equilibrium(eval_solver=solver, gradient=gradient, schedule=schedule, states_every=2)
    model = LanguageModelRecipe(
        embedding=partial(AdaptiveEmbedding, cutoffs=(10, 20), div_val=2),
        cell=partial(TrellisCell, hidden=0, scan=True),
        depth=depth,
        memory_length=4,
        chunk_length=2,
    )
    recipe = Recipe(run=run, data=data, model=model, training=training)
    path = tmp_path_factory.getbasetemp() / "written.toml"
    write_recipe(recipe, path)
    found = read_recipe(path)
    assert (found.run, found.data, found.training) == (run, data, training)
    assert depth_of(found) == depth
    assert table_of(found) == table_of(recipe)
    assert table_of(recipe_from(table_of(found), "tables")) == table_of(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstepz = 1", "FILE: training.stepz: no such key; the nearest is training.steps"),
        ("[trainig]\nsteps = 1", "FILE: trainig: no such key; the nearest is training"),
        ("[training]\nsteps = {a = 1}", "FILE: training.steps.a: training.steps takes a value, not a section"),
        ('[training]\nsteps = "many"', 'FILE: training.steps = "many": expected an integer'),
        ('[training]\nsteps = "7"', 'FILE: training.steps = "7": expected an integer'),
        ("[training]\nsteps = 3.5", "FILE: training.steps = 3.5: expected an integer"),
        ("[training]\nsteps = 7.0", "FILE: training.steps = 7.0: expected an integer"),
        ("[training]\nsteps = true", "FILE: training.steps = True: expected an integer"),
        ("[training]\nsteps = [1]", "FILE: training.steps = [1]: expected an integer"),
        ("[training]\nsteps = 0", "FILE: training: steps must be at least 1, found 0"),
        ("[training]\nclip = -1.0", "FILE: training: clip must be above 0 and finite, found -1.0"),
        ("[training]\nclip = nan", "FILE: training: clip must be above 0 and finite, found nan"),
        ("[model.cell]\ndropout = 1.0", "FILE: model.cell: dropout must be at least 0 and below 1, found 1.0"),
        (
            '[model.cell]\nkind = "contractiv"',
            'FILE: model.cell.kind = "contractiv": expected one of "contractive", "transformer_xl", "trellis", '
            'or "package.module:Class"; did you mean "contractive"?',
        ),
        ("[model.cell]\nd_model = 100", "FILE: model.cell: "),
        (
            '[model.cell]\nkind = "transformer_xl"\ncarry = 2',
            "FILE: model.cell.carry: kind transformer_xl has no such key",
        ),
        (PICARD + "history = 3", "FILE: model.depth.solver.history: method picard has no such key; method anderson"),
        (
            '[model.depth.gradient]\nmethod = "implicit"\nsteps = 3',
            "FILE: model.depth.gradient.steps: method implicit has no such key; method reversible, unrolled and",
        ),
        (
            '[training.optimizer]\nkind = "adamw"\nmomentum = 0.9',
            "FILE: training.optimizer.momentum: kind adamw has no such key; kind sgd and muon have it",
        ),
        ('[training.optimizer]\nkind = "sgd"\nmomentum = 1.5', "FILE: training.optimizer: momentum must be at least 0"),
        (
            '[training.schedule]\nkind = "constant"\nfinal_rate = 0.5',
            "FILE: training.schedule.final_rate: kind constant has no such key; kind cosine, linear and",
        ),
        ("[training.averaging]\ndecay = 0.5", "FILE: training.averaging.kind is missing: which averaging?"),
        (
            '[model.cell]\nkind = "trellis"\noutput_size = 5',
            "FILE: model: the cell has 5 features out and the softmax reads 128; they must agree",
        ),
        ('[model]\ncoda_layers = 1\n[model.cell]\nkind = "trellis"', "FILE: model.cell: a TrellisCell has no form"),
        (
            '[model.cell]\nkind = "trellis"\n[model]\ndepth = "stack"',
            "FILE: model.cell: a TrellisCell has no form without injection",
        ),
        ("[model]\ncoda_inner = 8", "FILE: model: coda_inner = 8 has no use without coda_layers; leave it out"),
        ("[model]\nchunk_length = 8", "FILE: model: memory_length = 0: chunks (chunk_length) see each other"),
        ("[model]\nauxiliary_weight = 0.1", "FILE: model: auxiliary_weight has no use without depth.states_every"),
        (
            '[model.embedding]\nkind = "adaptive"\ncutoffs = [3, 2.5]',
            "FILE: model.embedding.cutoffs = 2.5: expected an integer",
        ),
        (
            "[model.embedding]\ndiv_val = 2",
            "FILE: model.embedding.div_val: kind tied has no such key; kind adaptive has it",
        ),
        (
            '[model.depth.solver]\nmethod = "newton_krylov"',
            "FILE: model.depth.solver: NewtonKrylov solves sample by sample: scope must be",
        ),
        ('[model.depth]\ngradient = "reuse_inverse"', "FILE: model.depth: the gradient ReuseInverse uses the pairs"),
        (
            '[model.depth.gradient]\nmethod = "implicit"\n'
            '[model.depth.gradient.solver]\nmethod = "picard"\nrestart = 3',
            "FILE: model.depth.gradient.solver.restart: method picard has no such key; it takes tol",
        ),
        ("[model.depth]\ntied = true", "FILE: model.depth.tied: kind equilibrium has no such key"),
        (
            '[model.depth.schedule.limits]\nkind = "random"\nleast = 3',
            "FILE: model.depth.schedule.limits.most is missing",
        ),
        (
            "[model.depth.schedule]\nwarmup_steps = 3\nwarmup_share = 0.5",
            "FILE: model.depth.schedule: warmup_share has no effect beside warmup_steps",
        ),
        (
            "[model.depth]\nresidual_penalty = 0.5\n[model.depth.schedule.residual]\nweight = 1.0",
            "FILE: model.depth: residual_penalty has no effect beside schedule.residual",
        ),
        (
            '[model]\nkind = "equilibria.paper.baselines:LSTM"\nd_model = 8',
            "FILE: model.hidden is missing",
        ),
        (
            '[model]\nkind = "equilibria.paper.baselines:LSTM"\nd_model = 8\nhidden = 8\n[model.cell]\nd_model = 8',
            "FILE: model.cell: kind equilibria.paper.baselines:LSTM has no such key",
        ),
        ("[data]\nblanks = 5", "FILE: data.blanks: source embedded has no such key; source copy_memory has it"),
        ('[training]\noptimizer = "adan"', 'FILE: training.optimizer.kind = "adan": expected one of "adamw", "adam", '),
        ('[data]\ntokenizer = "file"', 'FILE: data.tokenizer: kind "file" needs a path'),
        (
            '[data.tokenizer]\nkind = "file"\npath = "f"\nminimum_count = 2',
            "FILE: data.tokenizer: the vocabulary of a file is given",
        ),
        ('[data]\nsource = "folder"', "FILE: data.path is missing"),
        ('[data]\npath = "p"', "FILE: data.path: source embedded has no such key"),
        ('[data]\nsource = "reversal"', "FILE: a task with a source and a target, and a model that reads one"),
        ("x = ", "FILE: cannot be read as TOML: "),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(message.replace("FILE", str(path)))
    assert "\n" not in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[training]\nstepz = 1\nbatch_size = "a"\n'
        '[model.depth.solver]\nmethod = "andersn"\n[data]\nsource = "folder"\n',
    )
    with pytest.raises(UserError) as raised:
        read_recipe(path, ["--model.cell.headz", "3", "--training.seed", "x"])
    lines = sorted(str(raised.value).split("\n"))
    assert lines == [
        "--model.cell.headz: kind contractive has no such key; the nearest is model.cell.heads",
        '--training.seed = "x": expected an integer',
        f"{path}: data.path is missing",
        f'{path}: model.depth.solver.method = "andersn": expected one of "anderson", "broyden", "newton_krylov", '
        '"picard", or "package.module:Class"; did you mean "anderson"?',
        f'{path}: training.batch_size = "a": expected an integer',
        f"{path}: training.stepz: no such key; the nearest is training.steps",
    ]


@pytest.mark.parametrize("line", ["data = 3", "model = [1]", "resume = true", 'file = "x"'])
def test_a_key_outside_the_sections(tmp_path: Path, line: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"{line}\n{NAMED}", encoding="utf-8")
    key = line.split()[0]
    with pytest.raises(UserError, match=rf"recipe.toml: {key}(: .*expected a section|: no such key)"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.stepz", "3"], "--training.stepz: no such key; the nearest is training.steps"),
        (["--training.stepz=3"], "--training.stepz: no such key; the nearest is training.steps"),
        (["--training.steps", "a"], '--training.steps = "a": expected an integer'),
        (["--training.steps"], "--training.steps: has no value: expected an integer"),
        (["--run.name"], "--run.name: has no value: expected text"),
        (["--run.directory"], "--run.directory: has no value: expected a path"),
        (["--training.steps", "1", "2"], "--training.steps = 1 2: expected one value"),
        (["--training.compile", "yes"], '--training.compile = "yes": expected true or false'),
        (["--model.depth.solver.tol", "nan"], "--model.depth.solver.tol: tol must be at least 0 and finite, found nan"),
        (["--data", "foldr"], '--data.source = "foldr": expected one of'),
        (["more"], "more: unexpected argument"),
        (["--"], "--: unexpected argument"),
        (["--training.", "3"], "--training.: unexpected argument"),
        (["--training.x.y", "3"], "--training.x: no such key"),
        (["--training.steps.x", "3"], "--training.steps.x: training.steps takes a value, not a section"),
        (["--model.cell.kind.x", "3"], "--model.cell.kind.x: model.cell.kind takes a value, not a section"),
        (["--model.cell.d_model", "9"], "--model.cell.d_model: d_model must be a multiple of 2 · heads"),
        (["--model.cell.heads", "3"], "--model.cell.heads: d_model must be a multiple of 2 · heads"),
        (["--model.coda_layers=1", "--model.cell", "trellis"], "--model.cell: a TrellisCell has no form without"),
        (["--data.source", "reversal"], "--data.source: a task with a source and a target"),
        (["--training.optimizer", "sgd", "--training.optimizer.momentum=2"], "--training.optimizer.momentum: momentum"),
        (["--training.compile", "--model.depth.jacobian_penalty=1"], "--training.compile: a Jacobian penalty needs"),
        (["--run.name", "a/b"], '--run.name: name = "a/b": expected a name without slashes'),
    ],
)
def test_what_is_wrong_with_a_flag(recipe: Path, flags: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_recipe(recipe, flags)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_recipe_without_a_name_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    with pytest.raises(UserError, match=r"empty\.toml: run\.name is missing"):
        read_recipe(tmp_path / "empty.toml")
    with pytest.raises(UserError, match=r"absent\.toml does not exist; a recipe is"):
        read_recipe(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="is a folder without a run"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("name", ["batch_size", "threads", "seed", "skipped_steps"])
def test_counts_of_a_training_are_whole_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, found 2.5"):
        TrainingRecipe(**{name: 2.5})  # pyright: ignore[reportArgumentType]


def test_recipes_are_values() -> None:
    run = RunRecipe(name="x")
    assert TrainingRecipe(optimizer=AdamW(beta2=0.9)) == TrainingRecipe(optimizer=AdamW(beta2=0.9))
    assert table_of(Recipe(run=run)) == table_of(Recipe(run=run))
    assert table_of(Recipe(run=run)) != table_of(replace(Recipe(run=run), training=TrainingRecipe(steps=1)))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbf[run]\nname = "marked"\n')
    assert read_recipe(path).run.name == "marked"


def test_a_flag_that_the_locale_could_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nname = "plain"\n')
    with pytest.raises(UserError, match=r"udcc3.* has characters that the locale lacks"):
        read_recipe(path, ["--data.cache", "caf\udcc3\udca9"])


def test_nothing_is_said_where_nothing_is_dropped(recipe: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_recipe(recipe, ["--model.depth.solver.method", "picard", "--model.cell", "contractive"])


NUMBERS = [
    (found, name, option)
    for base in (Cell, TokenEmbedding, Depth, Solver, AdjointSolver, Gradient, Optimizer, Schedule, Averaging, Limits)
    for found in [family_of(base)]
    if found is not None
    for name, cls in found.kinds().items()
    for option, entry in options(cls).items()
    if {int, float} & set(alternatives(entry.annotation))
]
PLACES = {
    "cell": "model.cell",
    "embedding": "model.embedding",
    "depth": "model.depth",
    "solver": "model.depth.solver",
    "adjoint solver": "model.depth.gradient.solver",
    "gradient": "model.depth.gradient",
    "optimizer": "training.optimizer",
    "schedule": "training.schedule",
    "averaging": "training.averaging",
    "kind of limits": "model.depth.schedule.limits",
}


def problem_with(recipe: Path, flags: list[str]) -> str:
    """What is wrong with the flags, or nothing."""
    try:
        read_recipe(recipe, flags)
    except UserError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize(
    ("found", "kind", "option"), NUMBERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_number_of_any_option_ends_in_anything_but_a_sentence(
    tmp_path: Path, found: Family, kind: str, option: str
) -> None:
    recipe = written(tmp_path, "")
    place = PLACES[found.noun]
    flags = [f"--{place}.{found.tag}={kind}"]
    if found.noun == "adjoint solver":
        flags.insert(0, "--model.depth.gradient.method=implicit")
    if found.noun == "kind of limits":
        flags += [f"--{place}.{name}=3" for name in options(found.find(kind))]
    if kind == "newton_krylov":
        flags.append(f"--{place}.scope=sample")
    if kind == "reuse_inverse":
        flags.append("--model.depth.solver=broyden")
    for value in ("-1", "0", "1", "2", "0.5", "1.5", "1000000007", "1e30", "nan", "inf", "-inf"):
        said = problem_with(recipe, [*flags, f"--{place}.{option}={value}"])
        assert not said or any(word in said for word in (option, "must", "d_model", "sizes"))


@pytest.mark.parametrize(
    ("short", "key", "value"),
    [
        ("--lr", "training.learning_rate", "0.002"),
        ("--steps", "training.steps", "3"),
        ("--batch-size", "training.batch_size", "4"),
        ("--batch_size", "training.batch_size", "4"),
        ("--seed", "training.seed", "9"),
        ("--name", "run.name", "mine"),
        ("--training.learning-rate", "training.learning_rate", "0.002"),
        ("--device", "training.device", "cpu"),
    ],
)
def test_short_names_and_dashes_stand_for_keys(short: str, key: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[run]\nname = "x"\n')
    assert str(settings_of(read_recipe(file, [short, value]))[key]) == value


@pytest.mark.parametrize("flags", ["--training.steps 3", {"training.steps": 3}])
def test_flags_are_a_list_of_words(flags: Any) -> None:
    with pytest.raises(UserError, match="flags must be a list of words"):
        read_recipe("demo", flags)
