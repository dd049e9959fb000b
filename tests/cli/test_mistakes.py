"""Mistakes that people make, and what they are told: what is wrong, and how to mend it."""

from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.configuration import write_recipe

RECIPE = "mine.toml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a run called vim that is only its recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny.tiny_recipe(tmp_path)
    write_recipe(recipe, Path(RECIPE))
    Path("runs/vim").mkdir(parents=True)
    write_recipe(recipe, Path("runs/vim/config.toml"))
    Path("runs/vim/checkpoints/step-4").mkdir(parents=True)
    Path("empty.toml").touch()
    Path("empty").mkdir()
    Path("book.txt").write_text("A book.\n")
    Path("list.toml").write_text('[run]\nname = "a"\n[data]\nsource = "files"\nfiles = "book.txt"\n')
    Path("binary.toml").write_bytes(b"\xff\xfe")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            f"train {RECIPE} --training.wd 1",
            "--training.wd: no such key; the nearest is training.optimizer.weight_decay",
        ),
        (f"train {RECIPE} --help-all", "--help-all: no such flag; --help all explains everything"),
        (f"train {RECIPE} --training.optimizer adamW", 'did you mean "adamw"?'),
        (f"train {RECIPE} --training.seed 0,1", "expected an integer; `equilibria sweep` takes several values"),
        (f"train {RECIPE} --training.dropout 0,1", "--training.dropout: no such key; it takes"),
        (f"train {RECIPE} --lr fast", '--training.learning_rate = "fast": expected a number'),
        (
            f"train {RECIPE} --weight-decay 0",
            "--weight_decay: no such key; the nearest is training.optimizer.weight_decay",
        ),
        ("train runs", "runs is a folder without a run; a recipe is a TOML file, or one of the package"),
        ("eval vim", "there is no run folder vim; the nearest is runs/vim"),
        ("eval runs/vimm", "there is no run folder runs/vimm; the nearest is runs/vim"),
        ("report runs/vin", "there is no run folder runs/vin; the nearest is runs/vim"),
        (
            "eval runs/other",
            "there is no run folder runs/other; give one that `equilibria train` made or",
        ),
        (
            f"eval {RECIPE}",
            f"{RECIPE} is a file, and no run folder; if it is a recipe, train it first: equilibria train",
        ),
        ("eval .", "a folder without a run; name one in it, such as"),
        ("eval empty", "empty is a folder without a run; give one that `equilibria train` made or"),
        ("export", "RUN is missing: expected a path; it takes RUN OUT --to VALUE, see equilibria export --help"),
        ("generate demo --device gpu", 'did you mean "cuda"?'),
        (f"train {RECIPE} -o out", "a key of the recipe is a flag: --run.directory VALUE"),
        (f"train {RECIPE} --out out", "--out: no such key; the nearest is run.directory"),
        (f"train {RECIPE} --output-dir out", "--output_dir: no such key; the nearest is run.directory"),
        # recipes
        ("train book.txt", "book.txt is no recipe, which is a TOML file; to train on a text: equilibria train"),
        ("train list.toml", 'data.files = "book.txt": expected a list, such as ["book.txt"]'),
        ("train english-4m/default", "another text is given by --data.source files --data.files TEXT"),
        ("train min", "min does not exist; a recipe is a TOML file such as mine.toml, or one of the package"),
        ("train mime.toml", "a recipe is a TOML file such as mine.toml"),
        ("train empty.toml", "empty.toml: run.name is missing"),
        ("train binary.toml", "binary.toml: cannot be read as TOML: it is not UTF-8 text"),
        ("sweep runs/vim --seed 0,1", "runs/vim is a run; its recipe is runs/vim/config.toml"),
        ("train vim --resume", "there is no run folder vim; the nearest is runs/vim"),
        ("train runs --resume", "runs is a folder without a run; name one in it, such as runs/vim"),
        ("train runs/vim/checkpoints/step-4 --resume", "is inside the run runs/vim; name that"),
        (f"train {RECIPE} other.toml", "other.toml: unexpected argument; one recipe is given, and flags after it"),
        (f"train {RECIPE} steps=5", "steps=5: unexpected argument; a key of the recipe is a flag: --steps VALUE"),
        (f"train {RECIPE} training.steps 5", "a key of the recipe is a flag: --training.steps VALUE"),
        (f"train {RECIPE} -steps 5", "-steps: unexpected argument; a key of the recipe is a flag: --steps VALUE"),
        (f"train --recipe {RECIPE}", "--recipe: give RECIPE alone, without a flag before it"),
        (f"train --training.steps 5 {RECIPE}", "--training.steps: RECIPE comes first, and flags after it"),
        # keys and values
        (f"train {RECIPE} --training.steps", "--training.steps: has no value: expected an integer"),
        (f"train {RECIPE} --training.steps five", '--training.steps = "five": expected an integer'),
        (f"train {RECIPE} --training.steps 1.5", '--training.steps = "1.5": expected an integer'),
        (f"train {RECIPE} --training.steps 0", "steps must be at least 1, found 0"),
        (f"train {RECIPE} --training.steps 10 20", "--training.steps = 10 20: expected one value"),
        (f"train {RECIPE} --batchsize 3", "--batchsize: no such key; the nearest is training.batch_size"),
        (f"train {RECIPE} --epochs 3", "--epochs: no such key; the nearest is training.steps"),
        (f"train {RECIPE} --max_iter 3", "--max_iter: no such key; the nearest is model.depth.solver.max_evaluations"),
        ("export demo --out there --to hf", "--out: give OUT alone, without a flag before it"),
        (f"train {RECIPE} --jsn", "--jsn: no such flag; the nearest is --json"),
        (f"train {RECIPE} --dryrun", "--dryrun: no such flag; the nearest is --dry-run"),
        (f"plan {RECIPE} --vocab 3", "--vocab: no such flag; the nearest is --vocabulary"),
        (f"sweep {RECIPE} --lst", "--lst: no such flag; the nearest is --list"),
        (f"sweep {RECIPE} --seeds 0,1", "--seeds: no such key; the nearest is training.seed"),
        (f"sweep {RECIPE} --seed 0,", "there is no value before, after or between commas"),
        (f"sweep {RECIPE} --seed 0,0", "a value comes twice"),
        (f"sweep {RECIPE} --seed 0,1 --index 5", "--index 5: the sweep has 2 runs, 0 to 1"),
        (f"train {RECIPE} --training.device gpu", 'expected one of "auto", "cpu", "cuda", "mps"; did you mean "cuda"?'),
        (f"train {RECIPE} --training.precision fp16", 'expected one of "float32", "bfloat16"'),
        (f"train {RECIPE} --model.cell transformer", 'did you mean "transformer_xl"?'),
        (f"train {RECIPE} --model.depth.layers 3", "kind equilibrium has no such key; kind stack has it"),
        (
            f"train {RECIPE} --model.depth.solver.history 9",
            "method picard has no such key; method anderson and broyden",
        ),
        (f"train {RECIPE} --model.depth.solver.max_iterations 9", "the nearest is model.depth.solver.max_evaluations"),
        (f"train {RECIPE} --model.cell.heads 3", "--model.cell.heads: d_model must be a multiple of 2"),
        (f"train {RECIPE} --model.dropout 1.5", "dropout must be at least 0 and below 1, found 1.5"),
        (f"train {RECIPE} --name a/b", "expected a name without slashes; run.directory says where it is"),
        (f"train {RECIPE} --unset model.foo", f"--unset model.foo: {RECIPE} does not set it"),
        (f"train {RECIPE} --unset training.steps=3", "does not set it; give the key without a value"),
        (f"train {RECIPE} --dry-run --resume", "--dry-run trains nothing, so --resume has no effect"),
        # data
        (f"train {RECIPE} --data.source fils", 'did you mean "files"?'),
        (f"train {RECIPE} --data.files empty.toml", "--data.files: source folder has no such key; source files has it"),
        (
            f"train {RECIPE} --unset data.path --data.source files --data.files nope.txt",
            "nope.txt does not exist; check the path",
        ),
        (
            f"train {RECIPE} --unset data.path --data.source files --data.files text",
            "text is a folder; name the text files in it",
        ),
        (f"train {RECIPE} --data.tokenizer.kind file", 'kind "file" needs a path; give its path'),
        (f"train {RECIPE} --data.tokenizer.path x", 'kind "bytes" takes no path; omit path, or take kind "file"'),
        # runs
        ("eval", "RUN is missing: expected a path; see equilibria eval --help"),
        ("eval runs", "runs is a folder without a run; name one in it, such as runs/vim"),
        ("report text", "text is a folder without a run"),
        ("eval runs/vim/checkpoints/step-4", "is inside the run runs/vim; name that (eval, generate and serve take"),
        ("generate runs/vim/checkpoints/step-4/model.safetensors", "is inside the run runs/vim; name that"),
        ("generate text/train.txt", "text/train.txt is a file, and no run folder"),
        ("eval runs/vim --segment-length 1.5", '--segment-length = "1.5": expected an integer'),
        ("eval runs/vim --memory-length -1", '--memory-length = "-1": expected an integer >= 0'),
        ("eval runs/vim --tolerance 0", '--tolerance = "0": expected a number > 0'),
        ("generate runs/vim hello", "hello: unexpected argument; a prompt is given with -p"),
        ("generate runs/vim -p", "-p has no value: expected text"),
        ("generate runs/vim -p x -n 0", '-n = "0": expected an integer >= 1'),
        ("generate runs/vim -n 1.5", '-n = "1.5": expected an integer'),
        ("generate runs/vim --lr 3", "--lr: no such option; there are --prompt, --prompts-file, --samples,"),
        ("serve runs/vim --port 80.5", '--port = "80.5": expected an integer'),
        ("serve runs/vim --port 99999", '--port = "99999": expected an integer <= 65535'),
        ("runs nope", "nope does not exist; expected a folder of runs"),
        (f"runs {RECIPE}", f"{RECIPE} is a file; expected a folder of runs"),
        ("runs --all", "--all: no such option; there are --json, --help"),
        ("train --help-all", "--help-all: no such option; the nearest is --help"),
        ("generate runs/vim --temp 1", "--temp: no such option; the nearest is --temperature"),
        ("generate demmo", "there is no run folder demmo; the nearest is demo, a model of the package"),
        (f"train {RECIPE} --training.lr 1", "--training.lr: no such key; the nearest is training.learning_rate"),
        (f"train {RECIPE} --model.coda_layers 1 --model.cell trellis", "set prelude_layers and coda_layers to 0"),
        # other commands
        ("init nope", "there is no recipe nope; name one of the package"),
        (f"init demo {RECIPE}", f"{RECIPE} exists already; name another file"),
        ("export runs/vim out --to torch", "out does not end in .pt2"),
        ("export runs/vim out.pt2 --to pytorch", 'did you mean "torch"?'),
        ("export runs/vim out.pt2", "--to is missing: expected one of"),
        (f"import torchdeq-lm {RECIPE}", "holds more than tensors, or is not a PyTorch file; save model.state_dict()"),
        ("import gpt", "gpt: no such command; the nearest is gpt2"),
        ("reproduce ptbb", 'did you mean "ptb"?'),
        ("bench solver", "there is no benchmark solver; the nearest is solvers"),
        ("doctor x", "x: unexpected argument; see equilibria doctor --help"),
        ("help train", "help: no such command; give equilibria train --help"),
        ("help", "help: no such command; the nearest is --help"),
        ("-v", "-v: no such command; the nearest is --version"),
        ("--verson", "--verson: no such command; the nearest is --version"),
        ("trian", "trian: no such command; the nearest is train"),
        ("xyzzy", "xyzzy: no such command; there are train, eval, generate"),
    ],
)
def test_it_is_told(typed: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main(typed.split()) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--model.depth.solver.scope", "sample"], 'depth.solver.scope = "sample"'),
        (["--model.depth.eval_solver.scope", "all"], 'depth.eval_solver.scope = "all"'),
    ],
)
def test_a_solver_that_looks_ahead_is_warned_of(
    flags: list[str], keys: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, "--seconds", "0.01", *flags]) == 0
    assert f"warning: {keys}: when a token stops depends on later ones" in capsys.readouterr().err


def test_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"worth", "serving", "laboratory"} <= lines.keys()
    assert "Where an equilibrium is worth having" in lines["worth"]
