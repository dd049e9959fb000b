"""Recipes from files and flags: what is read, and what is said about what cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.cells import ContractiveCell, PostNormCell
from equilibria.configuration import (
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    EmbeddingRecipe,
    GradientRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    ScheduleRecipe,
    SolverRecipe,
    TrainingRecipe,
    build_model,
    read_recipe,
    write_recipe,
)
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding

NAMED = '[run]\nname = "x"\n'
PICARD = '[model.depth.solver]\nmethod = "picard"\ntol = 0.1\nmax_evaluations = 3\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(NAMED + "[training]\nsteps = 7\n" + PICARD, encoding="utf-8")
    return path


def test_a_file_gives_its_values_and_defaults_for_the_rest(recipe: Path) -> None:
    found = read_recipe(recipe)
    assert (found.run.name, found.training.steps, found.model.depth.solver.tol) == ("x", 7, 0.1)
    assert found.training.batch_size == TrainingRecipe().batch_size
    assert found.run.folder == Path("runs/x")


def test_a_flag_has_the_last_word(recipe: Path) -> None:
    found = read_recipe(recipe, ["--training.steps", "8", "--model.depth.solver.tol=0.5", "--run.name", "y"])
    assert (found.training.steps, found.model.depth.solver.tol, found.run.name) == (8, 0.5, "y")
    assert found.model.depth.solver.max_evaluations == 3


def test_a_list_and_a_switch_as_flags(recipe: Path) -> None:
    flags = ["--data.source", "files", "--data.files", "a b", "--data.files", "c"]
    method, switch = "--model.depth.gradient.method=phantom", "--model.depth.gradient.checkpoint"
    found = read_recipe(recipe, [*flags, method, switch])
    assert found.data.files == (Path("a b"), Path("c"))
    assert found.model.depth.gradient.checkpoint is True
    assert read_recipe(recipe, [method, f"{switch}=false"]).model.depth.gradient.checkpoint is False


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
paths = texts.filter(lambda text: "\0" not in text).map(Path)
rates = st.floats(1e-300, 1e300)
counts = st.integers(1, 2**63 - 1)
printable = st.characters(exclude_categories=["C", "Z"], exclude_characters="/")
names = st.text(printable, min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))


@settings(max_examples=25, deadline=None)
@given(
    run=st.builds(RunRecipe, name=names, directory=paths),
    data=st.builds(
        DataRecipe,
        source=st.just("files"),
        files=st.lists(paths, min_size=1, max_size=3).map(tuple),
        vocabulary_size=st.none() | counts,
        cache=paths,
    ),
    training=st.builds(
        TrainingRecipe,
        steps=counts,
        learning_rate=rates,
        optimizer=st.just("muon"),
        momentum=st.none() | st.floats(0, 1, exclude_max=True),
        schedule=st.just("warmup_stable_decay"),
        decay_steps=st.none() | counts,
        averaging=st.just("uniform"),
        averaging_start=st.none() | st.integers(0, 2**63 - 1),
        threads=st.none() | counts,
    ),
    solver=st.builds(
        SolverRecipe,
        method=st.just("anderson"),
        tol=rates,
        max_evaluations=counts,
        ridge=st.none() | st.just(0.0) | rates,
    ),
    gradient=st.builds(
        GradientRecipe,
        method=st.just("phantom"),
        steps=st.none() | counts,
        checkpoint=st.none() | st.booleans(),
    ),
)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    run: RunRecipe,
    data: DataRecipe,
    training: TrainingRecipe,
    solver: SolverRecipe,
    gradient: GradientRecipe,
) -> None:
    schedule = ScheduleRecipe(warmup_steps=3, limits="growing", first_evaluations=1, last_evaluations=9)
    depth = DepthRecipe(eval_solver=solver, gradient=gradient, schedule=schedule, states_every=2)
    embedding = EmbeddingRecipe(kind="adaptive", cutoffs=(10, 20), div_val=2)
    cell = CellRecipe(kind="trellis", hidden=0, scan=True)
    model = ModelRecipe(embedding=embedding, cell=cell, depth=depth, memory_length=4, chunk_length=2)
    recipe = Recipe(run=run, data=data, model=model, training=training)
    path = tmp_path_factory.getbasetemp() / "written.toml"
    write_recipe(recipe, path)
    assert read_recipe(path) == recipe


EARLIER = """
[run]
name = "x"
directory = "runs"

[model]
memory_length = 128

[model.cell]
kind = "{cell}"
d_model = 32
heads = 2
inner = 64
blocks = 1
dropout = 0.2

[model.depth]
kind = "{depth}"
applications = 18
residual_penalty = 2.5

[model.depth.solver]
method = "picard"
tol = 0.01
max_evaluations = 4
scope = "prefix"

[model.depth.eval_solver]
method = "picard"
tol = 0.005
max_evaluations = 10
scope = "prefix"

[model.depth.gradient]
method = "phantom"
steps = 7
"""
"""The model of a run folder written when every cell and every depth had the same keys."""


@pytest.mark.parametrize("cell", ["contractive", "post_norm"])
@pytest.mark.parametrize("depth", ["equilibrium", "unrolled"])
def test_the_recipes_of_earlier_runs_mean_what_they_meant(tmp_path: Path, cell: str, depth: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(EARLIER.format(cell=cell, depth=depth), encoding="utf-8")
    model = build_model(read_recipe(path), 11)
    assert isinstance(model, LanguageModel)
    assert isinstance(model.cell, ContractiveCell if cell == "contractive" else PostNormCell)
    assert model.depth == (Equilibrium() if depth == "equilibrium" else UnrolledDepth(18))
    assert (model.memory_length, model.dropout, model.cell.dropout, model.cell.d_model) == (128, 0.2, 0.2, 32)
    assert (model.prelude, model.coda, model.chunk_length, model.auxiliary_weight) == (None, None, None, 0.0)
    assert isinstance(model.embedding, TiedEmbedding)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstepz = 1", "FILE: training.stepz: no such key; the nearest is training.steps"),
        ("[trainig]\nsteps = 1", "FILE: trainig.steps: no such key; the nearest is training.steps"),
        ("[training]\nsteps = {a = 1}", "FILE: training.steps.a: no such key; the nearest is training.steps"),
        ('[training]\nsteps = "many"', 'FILE: training.steps = "many": expected an integer'),
        ("[training]\nsteps = 3.5", 'FILE: training.steps = "3.5": expected an integer'),
        ("[training]\nsteps = true", 'FILE: training.steps = "True": expected an integer'),
        ("[training]\nsteps = [1]", 'FILE: training.steps = "[1]": expected an integer'),
        ("[training]\nsteps = 0", 'FILE: training.steps = "0": expected an integer >= 1'),
        ("[training]\nclip = -1.0", 'FILE: training.clip = "-1.0": expected a number > 0'),
        ("[model.cell]\ndropout = 1.0", 'FILE: model.cell.dropout = "1.0": expected a number < 1'),
        (
            '[model.cell]\nkind = "contractiv"',
            'FILE: model.cell.kind = "contractiv": expected one of "contractive", "post_norm", '
            '"three_block", "trellis"; did you mean "contractive"?',
        ),
        ("[model.cell]\nd_model = 100", "FILE: model.cell.d_model = 100: expected a multiple of twice"),
        (
            '[model.cell]\nkind = "post_norm"\nblocks = 2',
            'FILE: model.cell.blocks = 2: expected 1, the only number that kind "post_norm" has',
        ),
        (
            PICARD + "history = 3",
            'FILE: model.depth.solver.history: method "picard" has no such option; it takes damping',
        ),
        (
            '[model.depth.gradient]\nmethod = "implicit"\nsteps = 3',
            'FILE: model.depth.gradient.steps: method "implicit" has no such option; it takes tol',
        ),
        (
            '[model.depth.solver]\nmethod = "picard"\ntol = 1',
            "model.depth.solver.max_evaluations is missing; give it in the recipe or as --model",
        ),
        (
            "[training]\nmomentum = 0.9",
            'FILE: training.momentum: optimizer "adamw" has no such option; it takes weight_decay, beta1, beta2',
        ),
        (
            '[training]\noptimizer = "sgd"\nbeta1 = 0.5',
            'FILE: training.beta1: optimizer "sgd" has no such option; it takes weight_decay, momentum',
        ),
        (
            '[training]\nschedule = "constant"\nfinal_rate = 0.5',
            'FILE: training.final_rate: schedule "constant" has no such option; it takes none',
        ),
        (
            "[training]\naveraging_decay = 0.5",
            'FILE: training.averaging_decay: averaging "none" has no such option; it takes none',
        ),
        (
            '[training]\naveraging = "uniform"\naveraging_start = 5\naveraging_patience = 3',
            "FILE: training.averaging_patience has no use beside training.averaging_start; leave one of them out",
        ),
        (
            "[model.cell]\nwindow = 3",
            'FILE: model.cell.window: kind "contractive" has no such option; it takes heads, inner',
        ),
        (
            '[model.cell]\nkind = "trellis"\noutput_size = 5',
            "FILE: model.cell.output_size = 5: expected model.cell.d_model, 128, which an embedding of kind",
        ),
        (
            '[model.cell]\nkind = "post_norm"\nd_model = 130',
            "FILE: model.cell.d_model = 130: expected a multiple of model.cell.heads, 4",
        ),
        (
            '[model]\ncoda_layers = 1\n[model.cell]\nkind = "trellis"',
            'FILE: model.coda_layers: a cell of kind "trellis" has no form without injection',
        ),
        (
            '[model.cell]\nkind = "three_block"\n[model.depth]\nkind = "halting"',
            'FILE: model.depth.kind = "halting": a cell of kind "three_block" has no form without injection',
        ),
        ("[model]\ncoda_inner = 8", "FILE: model.coda_inner = 8 has no use without model.coda_layers; leave it out"),
        ("[model]\nchunk_length = 8", "FILE: model.memory_length = 0: chunks (model.chunk_length) see each other"),
        ("[model]\nauxiliary_weight = 0.1", "FILE: model.auxiliary_weight has no use without model.depth.states_every"),
        ("[model.embedding]\ncutoffs = [3, 2.5]", 'FILE: model.embedding.cutoffs = "2.5": expected an integer'),
        (
            "[model.embedding]\ndiv_val = 2",
            'FILE: model.embedding.div_val: kind "tied" has no such option; it takes none',
        ),
        (
            '[model.depth.solver]\nmethod = "newton_krylov"\ntol = 1e-3\nmax_evaluations = 9',
            'FILE: model.depth.solver.scope = "prefix": expected "sample", the only one that method',
        ),
        (
            '[model.depth.gradient]\nmethod = "reuse_inverse"',
            'FILE: model.depth.solver.method = "picard": expected "broyden", whose pairs the gradient',
        ),
        (
            '[model.depth.gradient]\nmethod = "implicit"\nadjoint = "picard"\nrestart = 3',
            'FILE: model.depth.gradient.restart: adjoint "picard" has no such option; it takes tol, max_evaluations, d',
        ),
        ("[model.depth]\ntied = true", 'FILE: model.depth.tied: kind "equilibrium" has no such option; it takes'),
        (
            "[model.depth.schedule]\nleast_evaluations = 3",
            "FILE: model.depth.schedule.least_evaluations has no use without model.depth.schedule.limits",
        ),
        (
            '[model.depth.schedule]\nlimits = "random"\nleast_evaluations = 3',
            'FILE: model.depth.schedule.most_evaluations is missing: model.depth.schedule.limits = "random" needs it',
        ),
        (
            '[model.depth.schedule]\nlimits = "random"\nleast_evaluations = 3\nmost_evaluations = 4\n'
            "last_evaluations = 5",
            'FILE: model.depth.schedule.last_evaluations: limits "random" has no such option; it takes',
        ),
        (
            "[model.depth.schedule]\nwarmup_applications = 3",
            "FILE: model.depth.schedule.warmup_applications has no use without model.depth.schedule.warmup_share or",
        ),
        (
            "[model.depth.schedule]\nwarmup_steps = 3\nwarmup_share = 0.5",
            "FILE: model.depth.schedule.warmup_share has no use beside model.depth.schedule.warmup_steps",
        ),
        (
            "[model.depth]\njacobian_penalty = 0.5\n[model.depth.schedule]\njacobian_weight = 1.0",
            "FILE: model.depth.schedule.jacobian_weight has no use beside model.depth.jacobian_penalty",
        ),
        (
            "[model.depth]\nresidual_penalty = 0.5\n[model.depth.schedule]\nresidual_weight = 1.0",
            "FILE: model.depth.schedule.residual_weight has no use beside model.depth.residual_penalty",
        ),
        (
            "[model.depth.schedule]\nresidual_last_weight = 1.0",
            "FILE: model.depth.schedule.residual_last_weight has no use without model.depth.schedule.residual_weight",
        ),
        (
            '[model.depth]\nkind = "unrolled"\n[model.depth.schedule]\nwarmup_steps = 5',
            'FILE: model.depth.schedule.warmup_steps is for model.depth.kind = "equilibrium", which is "unrolled" here',
        ),
        ("[model.baseline]\nhidden = 3", "FILE: model.baseline.hidden has no use without model.baseline.kind"),
        (
            '[model.baseline]\nkind = "lstm"\nd_model = 8',
            'FILE: model.baseline.hidden is missing: model.baseline.kind = "lstm" needs it',
        ),
        (
            '[model.baseline]\nkind = "lstm"\nd_model = 8\nhidden = 8\n[model.cell]\nd_model = 8',
            'FILE: model.cell has no use beside model.baseline.kind = "lstm"; leave it out',
        ),
        (
            '[model.baseline]\nkind = "gated_convolution"\nd_model = 8\nkernel_sizes = [2, 2]\nchannels = [8]',
            "FILE: model.baseline.kernel_sizes has 2 entries and model.baseline.channels 1: expected as many",
        ),
        (
            '[model.baseline]\nkind = "gated_convolution"\nd_model = 8\nkernel_sizes = [2]\nchannels = [9]',
            "FILE: model.baseline.channels ends in 9: expected d_model, 8, which the softmax reads unless",
        ),
        ("[data]\nblanks = 5", 'FILE: data.blanks is for data.source = "copy_memory", which is "embedded" here'),
        ('[training]\noptimizer = "adan"', 'FILE: training.optimizer = "adan": expected one of "adamw", "adam", '),
        ('[data]\ntokenizer = "file"', 'FILE: data.tokenizer_file is missing: data.tokenizer = "file" needs it'),
        (
            '[data]\ntokenizer_file = "f"',
            'FILE: data.tokenizer_file is for data.tokenizer = "file", which is "bpe" here',
        ),
        (
            '[data]\ntokenizer = "file"\ntokenizer_file = "f"\nminimum_count = 2',
            'FILE: data.minimum_count has no use beside data.tokenizer = "file", whose vocabulary is given',
        ),
        ('[data]\nsource = "folder"', 'FILE: data.path is missing: data.source = "folder" needs it'),
        ('[data]\npath = "p"', 'FILE: data.path is for data.source = "folder", which is "embedded" here'),
        ("x = ", "FILE: cannot be read as TOML: "),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(NAMED + text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(message.replace("FILE", str(path)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ['data = "folder"', "data = 3", "model = [1]", "resume = true", 'file = "x"'])
def test_a_key_outside_the_sections(tmp_path: Path, line: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"{line}\n{NAMED}", encoding="utf-8")
    key = line.split()[0]
    expected = rf"recipe.toml: {key}( = .*: expected a section, \[{key}\]|: no such key)"
    with pytest.raises(UserError, match=expected):
        read_recipe(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.stepz", "3"], "--training.stepz: no such option; the nearest is --training.steps"),
        (["--training.stepz=3"], "--training.stepz: no such option; the nearest is --training.steps"),
        (["--training.steps", "a"], '--training.steps = "a": expected an integer'),
        (["--training.steps"], "--training.steps has no value: expected an integer"),
        (["--model.depth.solver.tol", "nan"], '--model.depth.solver.tol = "nan": expected a number'),
        (["--data", "folder"], '--data = "folder": expected a section, [data] with its keys'),
        (["more"], "more: unexpected argument"),
        (["--run.name", "a/b"], 'FILE: run.name = "a/b": expected a name without slashes'),
    ],
)
def test_what_is_wrong_with_a_flag(recipe: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_recipe(recipe, flags)
    assert str(raised.value).startswith(message.replace("FILE", str(recipe)))
    assert "\n" not in str(raised.value)


def test_a_recipe_without_a_name_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    with pytest.raises(UserError, match=r"^run\.name is missing; give it in the recipe or as --run\.name$"):
        read_recipe(tmp_path / "empty.toml")
    with pytest.raises(UserError, match=r"absent\.toml: no such recipe"):
        read_recipe(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read as TOML"):
        read_recipe(tmp_path)


def test_recipes_are_values() -> None:
    recipe = Recipe(run=RunRecipe(name="x"))
    assert recipe == Recipe(run=RunRecipe(name="x"))
    assert recipe != replace(recipe, training=TrainingRecipe(steps=1))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbf[run]\nname = "marked"\n')
    assert read_recipe(path).run.name == "marked"


def test_a_flag_that_the_locale_could_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nname = "plain"\n')
    with pytest.raises(UserError, match=r"cache = .*udcc3.* has characters that the locale's encoding lacks"):
        read_recipe(path, ["--data.cache", "caf\udcc3\udca9"])
