"""The default cell and its options against an independent float64 implementation: plain loops, from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equilibria.cells import ContractiveCell, Memory
from equilibria.cells.contractive import ContractiveBlock
from equilibria.nn.attention import Place
from plain_loops import average, layer_normed, linear, randomised, root_mean_square_normed

DEFAULT_KEYS = [
    "carry_logit",
    "inject.weight",
    "inject.bias",
    "blocks.0.attention_norm.weight",
    "blocks.0.attention_norm.bias",
    "blocks.0.attention.query_gain",
    "blocks.0.attention.key_gain",
    "blocks.0.attention.queries_keys_values.weight",
    "blocks.0.attention.output.weight",
    "blocks.0.feed_forward_norm.weight",
    "blocks.0.feed_forward_norm.bias",
    "blocks.0.feed_forward.expand.weight",
    "blocks.0.feed_forward.expand.bias",
    "blocks.0.feed_forward.contract.weight",
    "blocks.0.feed_forward.contract.bias",
    "norm.weight",
    "norm.bias",
]


def turned(x: Tensor, position: int) -> Tensor:
    y = x.clone()
    for i in range(len(x) // 2):
        angle = position / 10_000.0 ** (2 * i / len(x))
        a, b = x[2 * i], x[2 * i + 1]
        y[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        y[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return y


def activated(a: Tensor, activation: str) -> Tensor:
    match activation:
        case "relu":
            return a * (a > 0)
        case "relu_squared":
            return a * a * (a > 0)
        case "gelu":
            return a * 0.5 * (1.0 + torch.erf(a / math.sqrt(2.0)))
    gate, value = a[: len(a) // 2], a[len(a) // 2 :]
    return gate / (1.0 + torch.exp(-gate)) * value


def attention(block, options: dict, seen: list[Tensor], past: int) -> list[Tensor]:
    """Of the tokens from `past` on, one sample."""
    module = block.attention
    heads, size = module.heads, module.head_size
    grouped = options["key_value_heads"] or heads
    projected = [linear(module.queries_keys_values, x) for x in seen]

    def part(t: int, head: int) -> Tensor:
        return projected[t][head * size : (head + 1) * size]

    def placed(x: Tensor, gain: Tensor | None, t: int) -> Tensor:
        if gain is not None:
            x = x / torch.sqrt((x * x).mean() + torch.finfo(x.dtype).eps) * gain
        return turned(x, t) if options["positions"] == "rotary" else x

    rows = []
    for t in range(past, len(seen)):
        mixed = []
        for head in range(heads):
            group = head // (heads // grouped)
            q = placed(part(t, head), module.query_gain, t)
            scores = []
            seen_by_t = range(t if options["strict"] else t + 1)
            for s in seen_by_t:
                k = placed(part(s, heads + group), module.key_gain, s)
                score = (q * k).sum() / math.sqrt(size)
                if options["positions"] == "linear":
                    score = score - (t - s) * options["slope_factor"] * 2.0 ** (-8.0 * (head + 1) / heads)
                scores.append(score)
            values = [part(s, heads + grouped + group) for s in seen_by_t]
            mixed.append(average(scores, values) if values else torch.zeros_like(q))
        rows.append(linear(module.output, torch.cat(mixed)))
    return rows


def carry_logit(cell, options: dict, x: Tensor) -> Tensor:
    if not options["token_carry"]:
        return cell.carry_logit
    scale = torch.sqrt((x * x).mean() + torch.finfo(x.dtype).eps)
    return cell.carry_logit + options["token_carry"] * torch.tanh(cell.carry_weight @ x / scale)


def by_loops(cell, options: dict, z, inputs, memory: list[Tensor], bound) -> Tensor:
    """One evaluation; dropout masks are taken from the bound map."""
    norm = root_mean_square_normed if options["norm"] == "rms" else layer_normed
    samples = []
    for b in range(len(z)):
        states = list(z[b])
        if cell.injection:
            carries = [1.0 / (1.0 + torch.exp(-carry_logit(cell, options, e))) for e in inputs[b]]
            injected = [linear(cell.inject, e) for e in inputs[b]]
            if options["injection_norm"]:
                injected = [e / torch.sqrt((e * e).mean() + torch.finfo(e.dtype).eps) for e in injected]
            states = [a * h + (1.0 - a) * e for a, h, e in zip(carries, states, injected, strict=True)]
        for index, block in enumerate(cell.blocks):
            masks = [bound.blocks[index].attention_dropout, bound.blocks[index].feed_forward_dropout]
            given_masks = [torch.ones_like(z) if mask is None else mask for mask in masks]
            past = [*memory[index][b]]
            seen = [norm(block.attention_norm, x) for x in [*past, *states]]
            mixed = attention(block, options, seen, len(past))
            for t, h in enumerate(states):
                h = h + mixed[t] * given_masks[0][b, t]
                expand, contract = block.feed_forward.expand, block.feed_forward.contract
                hidden = activated(linear(expand, norm(block.feed_forward_norm, h)), options["activation"])
                states[t] = h + linear(contract, hidden) * given_masks[1][b, t]
        samples.append(torch.stack([norm(cell.norm, h) for h in states]))
    return torch.stack(samples)


OPTIONS = st.fixed_dictionaries(
    {
        "norm": st.sampled_from(["layer", "rms"]),
        "positions": st.sampled_from(["rotary", "linear", "none"]),
        "query_key_norm": st.booleans(),
        "key_value_heads": st.sampled_from([None, 1, 2]),
        "activation": st.sampled_from(["relu", "gelu", "relu_squared", "swiglu"]),
        "normalisation": st.sampled_from(["none", "weight"]),
        "injection": st.booleans(),
        "injection_norm": st.booleans(),
        "token_carry": st.sampled_from([0.0, 1.5]),
        "carry": st.sampled_from([0.3, 0.9]),
        "strict": st.booleans(),
        "slope_factor": st.sampled_from([1.0, 16.0]),
    }
).map(lambda options: options if options["positions"] == "linear" else {**options, "slope_factor": 1.0})


@settings(max_examples=40, deadline=None)
@given(
    options=OPTIONS,
    batch=st.integers(1, 2),
    length=st.integers(1, 4),
    past=st.integers(0, 2),
    blocks=st.integers(1, 2),
    dropout=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 99),
)
def test_every_variant_equals_its_equations(options, batch, length, past, blocks, dropout, seed):
    torch.manual_seed(seed)
    cell = randomised(ContractiveCell(8, 2 if options["key_value_heads"] is None else 4, 3, blocks, dropout, **options))
    z, inputs = torch.randn(2, batch, length, 8, dtype=torch.float64)
    memory = list(torch.randn(blocks, batch, past, 8, dtype=torch.float64))
    with torch.no_grad():
        bound = cell.bind(inputs, Memory(tuple(memory)))
        expected = by_loops(cell, options, z, inputs, memory, bound)
        torch.testing.assert_close(bound(z), expected, rtol=1e-9, atol=1e-10)
    masks = [mask for block in bound.blocks for mask in (block.attention_dropout, block.feed_forward_dropout)]
    assert [mask is not None for mask in masks] == [dropout > 0] * 2 * blocks


def test_the_default_is_what_it_was():
    """Recorded names and values of the default cell: its weights, then two evaluations of it."""
    assert list(ContractiveCell(16, 2, 24).state_dict()) == DEFAULT_KEYS
    plain = {"carry": 0.3, "query_key_norm": False, "injection_norm": False}
    values = [
        (1, 0, plain, [0.3010935427, 0.2173625490, 2.2848207680]),
        (2, 3, plain, [1.5766501394, -0.1562309112, 0.4966621862]),
        (1, 0, {}, [-0.3219526160, 0.4878692685, 2.1633647432]),
        (2, 3, {}, [1.1861424494, -0.1407059005, -0.1620835890]),
    ]
    for blocks, past, options, expected in values:
        torch.manual_seed(11)
        cell = ContractiveCell(d_model=16, heads=2, inner=24, blocks=blocks, **options).double()
        inputs, z = (torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(2))
        memory = None
        if past:
            memory = Memory(tuple(torch.randn(2, past, 16, dtype=torch.float64) for _ in range(blocks)))
        bound = cell.bind(inputs, memory)
        found = bound(bound(z))[1, -1, :3]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_dropout_masks_are_drawn_in_the_order_of_the_sublayers():
    torch.manual_seed(0)
    cell = ContractiveCell(8, 2, 12, blocks=2, dropout=0.5)
    inputs = torch.randn(2, 4, 8)
    torch.manual_seed(1)
    bound = cell.bind(inputs)
    torch.manual_seed(1)
    for block in bound.blocks:
        for mask in (block.attention_dropout, block.feed_forward_dropout):
            assert mask is not None
            assert torch.equal(mask, torch.empty(2, 4, 8).bernoulli_(0.5) * 2.0)


def test_a_token_carry_starts_as_the_carry_and_then_differs_between_tokens():
    torch.manual_seed(0)
    cell = ContractiveCell(8, 2, 12, carry=0.7, token_carry=1.0)
    z, inputs = torch.randn(2, 2, 4, 8)
    plain = ContractiveCell(8, 2, 12, carry=0.7)
    plain.load_state_dict({name: value for name, value in cell.state_dict().items() if name != "carry_weight"})
    assert torch.equal(cell.bind(inputs)(z), plain.bind(inputs)(z))
    with torch.no_grad():
        cell.get_parameter("carry_weight").fill_(9.0)
        carry = cell.bind(inputs).carry
    assert carry is not None
    assert carry.shape == (2, 4, 8)
    least, most = (1 / (1 + math.exp(sign - math.log(0.7 / 0.3))) for sign in (1, -1))
    assert least - 1e-6 < float(carry.min()) < 0.6
    assert 0.8 < float(carry.max()) < most + 1e-6


def test_without_injection_the_cell_does_not_depend_on_inputs():
    cell = ContractiveCell(8, 2, 12, blocks=2, injection=False, token_carry=1.0)
    assert not {"carry_logit", "carry_weight", "inject.weight"} & set(cell.state_dict())
    z, one, two = torch.randn(3, 2, 4, 8)
    assert torch.equal(cell.bind(one)(z), cell.bind(two)(z))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "rms", "query_key_norm": True, "key_value_heads": 1, "activation": "swiglu"},
        {"positions": "linear", "normalisation": "weight", "activation": "gelu", "injection_norm": True, "carry": 0.6},
        {"token_carry": 1.5, "injection_norm": True},
        {"positions": "none", "normalisation": "spectral", "injection": False},
        {"positions": "linear", "slope_factor": 16.0, "strict": True},
    ],
    ids=["default", "modern", "linear", "token carry", "spectral", "strict"],
)
def test_gradients(options):
    torch.manual_seed(5)
    # Spectral norm moves its estimate each time it reads in training: not a function then.
    cell = randomised(ContractiveCell(4, 2, 3, blocks=2, **options)).eval()
    names, parameters = zip(*cell.named_parameters(), strict=True)
    z, inputs = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    memories = torch.randn(2, 2, 2, 4, dtype=torch.float64)

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, z, inputs, *memories):
            return self.cell.bind(inputs, Memory(memories))(z)

    def evaluate(z, inputs, first, second, *values):
        parameters = {f"cell.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(Once(), parameters, (z, inputs, first, second))

    everything = [x.detach().clone().requires_grad_() for x in (z, inputs, *memories, *parameters)]
    assert torch.autograd.gradcheck(evaluate, everything, fast_mode=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads"),
        ({"heads": 8}, "rotary"),
        ({"heads": 4, "key_value_heads": 3}, "key_value_heads"),
        ({"positions": "absolute"}, "positions"),
        ({"norm": "batch"}, "norm"),
        ({"activation": "tanh"}, "activation"),
        ({"blocks": 0}, "blocks"),
        ({"carry": 0.0}, "carry"),
        ({"carry": 1.0}, "carry"),
        ({"positions": "linear", "slope_factor": 0.0}, "slope_factor"),
        ({"slope_factor": 2.0}, "slope_factor"),
        ({"token_carry": -1.0}, "token_carry"),
    ],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ContractiveCell(**{"d_model": 8, "heads": 2, "inner": 4, **options})


def test_positions_other_than_rotary_allow_odd_heads():
    cell = ContractiveCell(6, 2, 4, positions="none")
    assert cell.bind(torch.randn(1, 2, 6))(torch.zeros(1, 2, 6)).shape == (1, 2, 6)


@pytest.mark.parametrize("positions", ["rotary", "linear", "none"])
def test_strict_tokens_attend_to_those_before_them_alone(positions):
    """The first gets nothing, and the second the value of the first, whatever their own states are."""
    torch.manual_seed(0)
    block = ContractiveCell(8, 2, 12, positions=positions, strict=True).blocks[0]
    assert isinstance(block, ContractiveBlock)
    one, other = torch.randn(2, 1, 2, 8)
    other[:, 0] = one[:, 0]
    pattern = block.attention.pattern(one, Place())
    found = block.attention.bind(pattern)(one)
    inward, outward = (
        part.get_parameter("weight") for part in (block.attention.queries_keys_values, block.attention.output)
    )
    value = one[:, 0] @ inward[16:].mT @ outward.mT
    assert not found[:, 0].any()
    torch.testing.assert_close(found[:, 1], value)
    torch.testing.assert_close(block.attention.bind(pattern)(other), found)
