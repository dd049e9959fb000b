"""The paper's tables 1 to 4, every figure checked against its text, and how each scale shrinks the models.

Depth is never scaled: a model of 70 levels keeps them, and models of one size in the paper are of one size at every
scale, so that the rows of a scale can be compared with each other. Only those of "full" compare with the paper's.
"""

from collections.abc import Mapping
from types import MappingProxyType

from equilibria.paper.tables import Contest, Flags, MeasuredTable, Row, Scale, Setting, TrainedTable

Scales = Mapping[Scale, Flags]


def _at(section: str, **pairs: tuple[object, object]) -> Scales:
    """`--section.key value` for each key, with a value for "tiny" and one for "small"; for a tuple, one per entry."""
    flags: dict[Scale, list[str]] = {"tiny": [], "small": []}
    for key, pair in pairs.items():
        for found, value in zip(flags.values(), pair, strict=True):
            for entry in value if isinstance(value, tuple) else (value,):
                found += [f"--{section}.{key}", str(entry)]
    return {scale: tuple(found) for scale, found in flags.items()}


def _all(*parts: Scales) -> Scales:
    """The flags of all parts; the last has the last word."""
    scales: tuple[Scale, ...] = ("tiny", "small")
    return {scale: tuple(flag for part in parts for flag in part[scale]) for scale in scales}


# Narrow models and short training want a higher rate than is published; clusters have to suit the vocabulary.
_RATES = _at("training", learning_rate=(3e-3, 2e-3))
_CLUSTERS = _at("model.embedding", cutoffs=((500, 1000), (2000, 5000)))
# Of the models that have them: features of the embedding, those of the model; unrolled steps at first, a tenth of all;
# segments that are solved in halves; steps over which the rate falls.
_EMBEDDED = _at("model.embedding", d_embed=(32, 64))
_PRETRAINED = _at("model.depth.schedule", warmup_steps=(15, 100))
_HALVED = _at("model", chunk_length=(32, 32))
_FALL = _at("training.schedule", decay_steps=(30, 200))
_TRELLIS = _all(_at("model.cell", d_model=(48, 64), output_size=(48, 64), hidden=(80, 112)), _RATES)
_TEXT = _all(
    _at("model", memory_length=(64, 64)),
    _at("training", steps=(150, 1000), batch_size=(4, 8), segment_length=(64, 64), accumulation=(1, 1)),
    _at("training.schedule", warmup_steps=(7, 50)),
    _at("training", evaluate_every=(37, 250), checkpoint_every=(18, 125), evaluate_tokens=(4096, 32768)),
)


def _transformer(tiny: int, small: int) -> Scales:
    """Width 32 and 64, with feed-forward layers of these widths."""
    return _all(_at("model.cell", d_model=(32, 64), heads=(2, 4), inner=(tiny, small)), _CLUSTERS, _RATES)


def _baseline(d_model: tuple[int, int], hidden: tuple[int, int]) -> Scales:
    """Features of the embedding, and units of a layer."""
    return _at("model", d_model=d_model, hidden=hidden)


def _rows(
    unit: float,
    *published: tuple[str, str, *tuple[float | None, ...]],
    scales: Mapping[str, Scales],
    flags: Mapping[str, Flags] = MappingProxyType({}),
    recipes: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Row, ...]:
    """Rows of a table.

    Args:
        unit: of the numbers of parameters.
        published: name, model, figure, parameters in all and outside the embedding, gigabytes; the last may be missing.
        scales, flags, recipes: of the rows of these names.
    """
    rows = []
    for name, model, *figures in published:
        figure, parameters, inner, gigabytes = [*figures, None, None, None, None][:4]
        row = Row(
            name=name,
            model=model,
            recipe=recipes.get(name, name),
            flags=flags.get(name, ()),
            scales=scales.get(name, {}),
            parameters=parameters and parameters * unit,
            inner=inner and inner * unit,
            figure=figure,
            gigabytes=gigabytes,
        )
        rows.append(row)
    return tuple(rows)


COPY_MEMORY = TrainedTable(
    name="copy-memory",
    title="Table 1: copy memory over 400 blanks, loss",
    figure="loss",
    vocabulary_size=10,
    rows=_rows(
        1e3,
        ("deq-transformer", "DEQ-Transformer", 3.5e-6, 14),
        ("tcn", "TCN", 2.7e-5, 16),
        ("lstm", "LSTM", 0.0501, 14),
        ("gru", "GRU", 0.0491, 14),
        scales={"deq-transformer": _at("model.depth.schedule", warmup_steps=(200, 600))},
    ),
    scales=_all(_at("data", blanks=(20, 100), held_out=(200, 500)), _at("training", steps=(600, 2000))),
)

PTB = TrainedTable(
    name="ptb",
    title="Table 2: Penn Treebank by words, test perplexity",
    figure="perplexity",
    vocabulary_size=10_000,
    rows=_rows(
        1e6,
        ("variational-lstm", "Variational LSTM", 73.4, 66),
        ("nas", "NAS cell", 62.4, 54),
        ("nas-tuned", "NAS, tuned as a black box", 59.7, 24, 20),
        ("awd-lstm", "AWD-LSTM", 58.8, 24, 20),
        ("darts", "DARTS, second order", 55.7, 23, 20),
        ("trellisnet", "60-layer TrellisNet", 57.0, 24, 20, 8.5),
        ("deq-trellisnet", "DEQ-TrellisNet", 57.1, 24, 20, 1.2),
        scales={
            "variational-lstm": _all(_baseline((80, 112), (80, 112)), _FALL),
            "nas": _all(_baseline((72, 104), (72, 104)), _FALL),
            "nas-tuned": _baseline((48, 64), (102, 145)),
            "awd-lstm": _baseline((48, 64), (104, 146)),
            "darts": _baseline((96, 132), (96, 132)),
            "trellisnet": _TRELLIS,
            "deq-trellisnet": _all(_TRELLIS, _PRETRAINED),
        },
        flags={"trellisnet": ("--model.depth.checkpoint=false",)},
    ),
    scales=_all(_TEXT, {"tiny": ("--data.tokenizer.vocabulary_size", "2000"), "small": ()}),
    test_tokens={"tiny": 8192},
    data="`equilibria data ptb` fetches it",
)

WIKITEXT_103 = TrainedTable(
    name="wikitext-103",
    title="Table 3: WikiText-103, test perplexity",
    figure="perplexity",
    vocabulary_size=267_735,
    rows=_rows(
        1e6,
        ("tcn", "Generic TCN", 45.2, 150, 34),
        ("gated-convolution", "Gated linear ConvNet", 37.2, 230),
        ("awd-qrnn", "AWD-QRNN", 33.0, 159, 51, 7.1),
        ("relational-memory", "Relational Memory Core", 31.6, 195, 60),
        ("transformer-xl-large", "Transformer-XL (X-large, adaptive embedding, on TPU)", 18.7, 257, 224, 12.0),
        ("trellisnet", "70-layer TrellisNet", 29.2, 180, 45, 24.7),
        ("trellisnet-checkpointed", "70-layer TrellisNet with gradient checkpointing", 29.2, 180, 45, 5.2),
        ("deq-trellisnet", "DEQ-TrellisNet", 29.0, 180, 45, 3.3),
        ("transformer-xl-16", "Transformer-XL (medium, 16 layers)", 24.3, 165, 44, 8.5),
        ("deq-transformer-medium", "DEQ-Transformer (medium)", 24.2, 172, 43, 2.7),
        ("transformer-xl-18-adaptive", "Transformer-XL (medium, 18 layers, adaptive embedding)", 23.6, 110, 72, 9.0),
        ("deq-transformer-medium-adaptive", "DEQ-Transformer (medium, adaptive embedding)", 23.2, 110, 70, 3.7),
        ("transformer-xl-4", "Transformer-XL (small, 4 layers)", 35.8, 139, 4.9, 4.8),
        ("transformer-xl-tied-16", "Transformer-XL (small, weight-tied 16 layers)", 34.9, 138, 4.5, 6.8),
        ("deq-transformer-small", "DEQ-Transformer (small)", 32.4, 138, 4.5, 1.1),
        ("deq-transformer-2023", "DEQ-Transformer of 2023 (arXiv:2310.18605; not in the table)"),
        scales={
            "tcn": _all(_baseline((32, 64), (48, 80)), _RATES),
            "gated-convolution": _all(
                _at("model", d_model=(32, 64), channels=((32,) * 12 + (40, 80), (64,) * 12 + (80, 160))),
                _at("model.embedding", d_embed=(16, 32)),
                _CLUSTERS,
            ),
            "awd-qrnn": _all(_baseline((32, 64), (96, 192)), _CLUSTERS, _FALL, _RATES),
            "relational-memory": _all(_baseline((32, 64), (32, 64)), _at("model", head_size=(24, 40)), _RATES),
            "transformer-xl-large": _all(_transformer(512, 1024), _EMBEDDED),
            "trellisnet": _TRELLIS,
            "trellisnet-checkpointed": _TRELLIS,
            "deq-trellisnet": _all(_TRELLIS, _PRETRAINED, _HALVED),
            "transformer-xl-16": _transformer(128, 256),
            "deq-transformer-medium": _all(_transformer(3200, 6400), _PRETRAINED, _HALVED),
            "transformer-xl-18-adaptive": _all(_transformer(128, 256), _EMBEDDED),
            "deq-transformer-medium-adaptive": _all(_transformer(3600, 7200), _PRETRAINED),
            "transformer-xl-4": _all(_transformer(128, 256), _EMBEDDED),
            "transformer-xl-tied-16": _transformer(752, 1504),
            "deq-transformer-small": _all(_transformer(704, 1408), _PRETRAINED, _HALVED),
            "deq-transformer-2023": _transformer(1120, 2240),
        },
        flags={
            "trellisnet": ("--model.depth.checkpoint=false",),
            "trellisnet-checkpointed": ("--model.depth.checkpoint=true",),
        },
        recipes={"trellisnet-checkpointed": "trellisnet"},
    ),
    scales=_all(_TEXT, _at("data.tokenizer", vocabulary_size=(2000, 10_000))),
    test_tokens={"tiny": 8192},
    data="`equilibria data wikitext-103` fetches it",
)


def _contest(
    table: TrainedTable, *names: str, training: float | None = None, inference: float | None = None
) -> Contest:
    return Contest(table=table, rows=tuple(map(table.row, names)), training=training, inference=inference)


_EQUAL: Mapping[Scale, Setting] = {
    "tiny": Setting(batch_size=4, segment_length=64, rounds=5),
    "small": Setting(batch_size=8, segment_length=64, rounds=15),
    "full": Setting(batch_size=15, segment_length=150, rounds=5),
}

MEMORY = MeasuredTable(
    name="memory",
    title="Tables 2 and 3: memory of training",
    contests=(
        _contest(PTB, "trellisnet", "deq-trellisnet"),
        _contest(WIKITEXT_103, "trellisnet", "trellisnet-checkpointed", "deq-trellisnet"),
        _contest(WIKITEXT_103, "transformer-xl-16", "deq-transformer-medium"),
        _contest(WIKITEXT_103, "transformer-xl-18-adaptive", "deq-transformer-medium-adaptive"),
        _contest(WIKITEXT_103, "transformer-xl-tied-16", "transformer-xl-4", "deq-transformer-small"),
    ),
    settings=_EQUAL,
)

RUNTIME = MeasuredTable(
    name="runtime",
    title="Table 4: time in terms of the explicit model",
    contests=(
        _contest(
            WIKITEXT_103,
            *("transformer-xl-18-adaptive", "deq-transformer-medium-adaptive"),
            training=2.82,
            inference=1.76,
        ),
        _contest(WIKITEXT_103, "trellisnet", "deq-trellisnet", training=2.40, inference=1.64),
    ),
    settings=_EQUAL,
)

TRAINED: Mapping[str, TrainedTable] = {table.name: table for table in (COPY_MEMORY, PTB, WIKITEXT_103)}
MEASURED: Mapping[str, MeasuredTable] = {table.name: table for table in (MEMORY, RUNTIME)}
