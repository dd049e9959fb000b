"""The paper's tables 1 to 4, every figure checked against its text, and how each scale shrinks the models.

Depth is never scaled: a model of 70 levels keeps them, and models of one size in the paper are of one size at every
scale, so that the rows of a scale can be compared with each other. With the paper's figures only those of "full" can.
"""

from collections.abc import Mapping

from equilibria.reproduction.tables import Contest, Flags, MeasuredTable, Row, Scale, Setting, TrainedTable

_K, _M = 1e3, 1e6


def _flags(section: str, **values: object) -> Flags:
    """`--section.key value` for each."""
    return tuple(part for key, value in values.items() for part in (f"--{section}.{key}", str(value)))


def _training(steps: int, batch_size: int, segment_length: int, evaluate_tokens: int) -> Flags:
    """Short training with four evaluations."""
    return _flags(
        "training",
        steps=steps,
        batch_size=batch_size,
        segment_length=segment_length,
        accumulation=1,
        warmup_steps=max(1, steps // 20),
        evaluate_every=max(1, steps // 4),
        evaluate_tokens=evaluate_tokens,
        checkpoint_every=max(1, steps // 8),
    )


_TEXT_TINY = (*_flags("model", memory_length=64), *_training(150, 4, 64, 4096))
_TEXT_SMALL = (*_flags("model", memory_length=64), *_training(1000, 8, 64, 32768))
_RATES: Mapping[Scale, Flags] = {
    "tiny": _flags("training", learning_rate=3e-3),  # narrow models and short training want more than is published
    "small": _flags("training", learning_rate=2e-3),
}


def _transformer(tiny: int, small: int) -> dict[Scale, Flags]:
    """Width 32 and 64, with feed-forward layers of these widths; clusters of the embedding to suit the vocabulary."""

    def clusters(*cutoffs: int) -> Flags:
        return tuple(part for cutoff in cutoffs for part in _flags("model.embedding", cutoffs=cutoff))

    return {
        "tiny": (*_flags("model.cell", d_model=32, heads=2, inner=tiny), *clusters(500, 1000), *_RATES["tiny"]),
        "small": (*_flags("model.cell", d_model=64, heads=4, inner=small), *clusters(2000, 5000), *_RATES["small"]),
    }


def _trellis(tiny: tuple[int, int], small: tuple[int, int]) -> dict[Scale, Flags]:
    """Features of the embedding, which are those of the output, and the others of the state."""
    return {
        "tiny": (*_flags("model.cell", d_model=tiny[0], output_size=tiny[0], hidden=tiny[1]), *_RATES["tiny"]),
        "small": (*_flags("model.cell", d_model=small[0], output_size=small[0], hidden=small[1]), *_RATES["small"]),
    }


def _baseline(tiny: tuple[int, int], small: tuple[int, int]) -> dict[Scale, Flags]:
    """Features of the embedding, and units of a layer."""
    return {
        "tiny": _flags("model.baseline", d_model=tiny[0], hidden=tiny[1]),
        "small": _flags("model.baseline", d_model=small[0], hidden=small[1]),
    }


def _embedded(sizes: Mapping[Scale, Flags]) -> dict[Scale, Flags]:
    """Also as many features of the embedding as of the model, where the recipe has another number."""
    widths: dict[Scale, int] = {"tiny": 32, "small": 64}
    return {scale: (*flags, *_flags("model.embedding", d_embed=widths[scale])) for scale, flags in sizes.items()}


def _pretrained(sizes: Mapping[Scale, Flags]) -> dict[Scale, Flags]:
    """Also the unrolled steps at first, a tenth of all."""
    steps: dict[Scale, int] = {"tiny": 15, "small": 100}
    return {
        scale: (*flags, *_flags("model.depth.schedule", warmup_steps=steps[scale])) for scale, flags in sizes.items()
    }


def _halved(sizes: Mapping[Scale, Flags]) -> dict[Scale, Flags]:
    """Also segments that are solved in halves."""
    return {scale: (*flags, *_flags("model", chunk_length=32)) for scale, flags in sizes.items()}


COPY_MEMORY = TrainedTable(
    name="copy-memory",
    title="Table 1: copy memory over 400 blanks, loss",
    figure="loss",
    vocabulary_size=10,
    rows=(
        Row(
            name="deq-transformer",
            model="DEQ-Transformer",
            recipe="copy-memory/deq-transformer.toml",
            scales={
                "tiny": _flags("model.depth.schedule", warmup_steps=200),
                "small": _flags("model.depth.schedule", warmup_steps=600),
            },
            parameters=14 * _K,
            figure=3.5e-6,
        ),
        Row(name="tcn", model="TCN", recipe="copy-memory/tcn.toml", parameters=16 * _K, figure=2.7e-5),
        Row(name="lstm", model="LSTM", recipe="copy-memory/lstm.toml", parameters=14 * _K, figure=0.0501),
        Row(name="gru", model="GRU", recipe="copy-memory/gru.toml", parameters=14 * _K, figure=0.0491),
    ),
    scales={
        "tiny": (*_flags("data", blanks=20, held_out=200), *_flags("training", steps=600)),
        "small": (*_flags("data", blanks=100, held_out=500), *_flags("training", steps=2000)),
    },
)

_PTB_TRELLIS = _trellis((48, 80), (64, 112))

PTB = TrainedTable(
    name="ptb",
    title="Table 2: Penn Treebank by words, test perplexity",
    figure="perplexity",
    vocabulary_size=10_000,
    rows=(
        Row(name="variational-lstm", model="Variational LSTM", parameters=66 * _M, figure=73.4),
        Row(name="nas", model="NAS cell", parameters=54 * _M, figure=62.4),
        Row(name="nas-tuned", model="NAS, tuned as a black box", parameters=24 * _M, inner=20 * _M, figure=59.7),
        Row(
            name="awd-lstm",
            model="AWD-LSTM",
            recipe="ptb/awd-lstm.toml",
            scales=_baseline((48, 104), (64, 146)),
            parameters=24 * _M,
            inner=20 * _M,
            figure=58.8,
        ),
        Row(name="darts", model="DARTS, second order", parameters=23 * _M, inner=20 * _M, figure=55.7),
        Row(
            name="trellisnet",
            model="60-layer TrellisNet",
            recipe="ptb/trellisnet.toml",
            flags=("--model.depth.checkpoint=false",),
            scales=_PTB_TRELLIS,
            parameters=24 * _M,
            inner=20 * _M,
            figure=57.0,
            gigabytes=8.5,
        ),
        Row(
            name="deq-trellisnet",
            model="DEQ-TrellisNet",
            recipe="ptb/deq-trellisnet.toml",
            scales=_pretrained(_PTB_TRELLIS),
            parameters=24 * _M,
            inner=20 * _M,
            figure=57.1,
            gigabytes=1.2,
        ),
    ),
    scales={
        "tiny": (*_flags("data", vocabulary_size=2000), *_TEXT_TINY),
        "small": _TEXT_SMALL,
    },
    test_tokens={"tiny": 8192},
    data="`equilibria data ptb` fetches it",
)

_WT_TRELLIS = _trellis((48, 80), (64, 112))

WIKITEXT_103 = TrainedTable(
    name="wikitext-103",
    title="Table 3: WikiText-103, test perplexity",
    figure="perplexity",
    vocabulary_size=267_735,
    rows=(
        Row(name="tcn", model="Generic TCN", parameters=150 * _M, inner=34 * _M, figure=45.2),
        Row(name="gated-convolution", model="Gated linear ConvNet", parameters=230 * _M, figure=37.2),
        Row(name="awd-qrnn", model="AWD-QRNN", parameters=159 * _M, inner=51 * _M, figure=33.0, gigabytes=7.1),
        Row(
            name="relational-memory",
            model="Relational Memory Core",
            parameters=195 * _M,
            inner=60 * _M,
            figure=31.6,
        ),
        Row(
            name="transformer-xl-large",
            model="Transformer-XL (X-large, adaptive embedding, on TPU)",
            parameters=257 * _M,
            inner=224 * _M,
            figure=18.7,
            gigabytes=12.0,
        ),
        Row(
            name="trellisnet",
            model="70-layer TrellisNet",
            recipe="wikitext-103/trellisnet.toml",
            flags=("--model.depth.checkpoint=false",),
            scales=_WT_TRELLIS,
            parameters=180 * _M,
            inner=45 * _M,
            figure=29.2,
            gigabytes=24.7,
        ),
        Row(
            name="trellisnet-checkpointed",
            model="70-layer TrellisNet with gradient checkpointing",
            recipe="wikitext-103/trellisnet.toml",
            flags=("--model.depth.checkpoint=true",),
            scales=_WT_TRELLIS,
            parameters=180 * _M,
            inner=45 * _M,
            figure=29.2,
            gigabytes=5.2,
        ),
        Row(
            name="deq-trellisnet",
            model="DEQ-TrellisNet",
            recipe="wikitext-103/deq-trellisnet.toml",
            scales=_halved(_pretrained(_WT_TRELLIS)),
            parameters=180 * _M,
            inner=45 * _M,
            figure=29.0,
            gigabytes=3.3,
        ),
        Row(
            name="transformer-xl-16",
            model="Transformer-XL (medium, 16 layers)",
            recipe="wikitext-103/transformer-xl-16.toml",
            scales=_transformer(128, 256),
            parameters=165 * _M,
            inner=44 * _M,
            figure=24.3,
            gigabytes=8.5,
        ),
        Row(
            name="deq-transformer-medium",
            model="DEQ-Transformer (medium)",
            recipe="wikitext-103/deq-transformer-medium.toml",
            scales=_halved(_pretrained(_transformer(3200, 6400))),
            parameters=172 * _M,
            inner=43 * _M,
            figure=24.2,
            gigabytes=2.7,
        ),
        Row(
            name="transformer-xl-18-adaptive",
            model="Transformer-XL (medium, 18 layers, adaptive embedding)",
            recipe="wikitext-103/transformer-xl-18-adaptive.toml",
            scales=_embedded(_transformer(128, 256)),
            parameters=110 * _M,
            inner=72 * _M,
            figure=23.6,
            gigabytes=9.0,
        ),
        Row(
            name="deq-transformer-medium-adaptive",
            model="DEQ-Transformer (medium, adaptive embedding)",
            recipe="wikitext-103/deq-transformer-medium-adaptive.toml",
            scales=_pretrained(_transformer(3600, 7200)),
            parameters=110 * _M,
            inner=70 * _M,
            figure=23.2,
            gigabytes=3.7,
        ),
        Row(
            name="transformer-xl-4",
            model="Transformer-XL (small, 4 layers)",
            recipe="wikitext-103/transformer-xl-4.toml",
            scales=_embedded(_transformer(128, 256)),
            parameters=139 * _M,
            inner=4.9 * _M,
            figure=35.8,
            gigabytes=4.8,
        ),
        Row(
            name="transformer-xl-tied-16",
            model="Transformer-XL (small, weight-tied 16 layers)",
            recipe="wikitext-103/transformer-xl-tied-16.toml",
            scales=_transformer(752, 1504),
            parameters=138 * _M,
            inner=4.5 * _M,
            figure=34.9,
            gigabytes=6.8,
        ),
        Row(
            name="deq-transformer-small",
            model="DEQ-Transformer (small)",
            recipe="wikitext-103/deq-transformer-small.toml",
            scales=_halved(_pretrained(_transformer(704, 1408))),
            parameters=138 * _M,
            inner=4.5 * _M,
            figure=32.4,
            gigabytes=1.1,
        ),
        Row(
            name="deq-transformer-2023",
            model="DEQ-Transformer of 2023 (arXiv:2310.18605; not in the table)",
            recipe="wikitext-103/deq-transformer-2023.toml",
            scales=_transformer(1120, 2240),
        ),
    ),
    scales={
        "tiny": (*_flags("data", vocabulary_size=2000), *_TEXT_TINY),
        "small": (*_flags("data", vocabulary_size=10_000), *_TEXT_SMALL),
    },
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
