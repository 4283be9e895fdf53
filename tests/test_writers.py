"""Writers against torch.optim and against their formulas solved in the plainest way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.memory import Address
from memgraft.reference import dense_read
from memgraft.writers import SGD, Adam, LeastInterference, Moments, Writer, address_matrix, clipped, row_changes

WIDTH, SLOTS = 5, 24


def random_address(tokens: int, seed: int, slots: int = SLOTS) -> Address:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, 2, slots, generator=generator).argsort(-1)[..., :4].contiguous()
    return Address(ids, torch.rand(tokens, 2, 4, generator=generator).softmax(-1) / 2**0.5)


def random_gradient(tokens: int, seed: int) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def change(
    writer: Writer,
    address: Address,
    gradient: Tensor,
    chosen: Tensor,
    *,
    covariance: Tensor | None = None,
    moments: Moments | None = None,
    context: Address | None = None,
    loss: float | None = None,
) -> Tensor:
    covariance = torch.zeros(len(chosen)) if covariance is None else covariance
    held = address_matrix(context, chosen) if context else None
    return row_changes(writer, address_matrix(address, chosen), gradient, chosen, covariance, moments or Moments(), held, loss)


def table_gradient(table: Tensor, address: Address, gradient: Tensor) -> Tensor:
    """dL/dV of a dense table by autograd, for the loss whose gradient at the read is given."""
    table = table.detach().requires_grad_(True)
    dense_read(address, table).backward(gradient)
    assert table.grad is not None
    return table.grad


CHOSEN = torch.tensor([0, 3, 4, 9, 17, 23])
CHANGING = (CHOSEN, torch.tensor([1, 3, 9]), torch.tensor([0, 1, 2, 3]), torch.tensor([4, 9, 23]), CHOSEN)


def test_sgd_is_torchs_sgd_on_the_chosen_rows() -> None:
    address, gradient = random_address(7, 0), random_gradient(7, 1)
    row = torch.zeros(SLOTS, WIDTH, requires_grad=True)
    row.grad = table_gradient(row, address, gradient)
    torch.optim.SGD([row], lr=0.7).step()
    torch.testing.assert_close(change(SGD(learning_rate=0.7), address, gradient, CHOSEN), row.detach()[CHOSEN])


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_clipping_is_torchs_clipping_of_the_chosen_rows_alone(max_norm: float) -> None:
    address, gradient = random_address(7, 0), 10 * random_gradient(7, 1)
    rows = torch.zeros(len(CHOSEN), WIDTH, requires_grad=True)
    rows.grad = table_gradient(torch.zeros(SLOTS, WIDTH), address, gradient)[CHOSEN]
    torch.nn.utils.clip_grad_norm_([rows], max_norm)
    torch.testing.assert_close(change(SGD(learning_rate=1.0, max_norm=max_norm), address, gradient, CHOSEN), -rows.grad)


def test_clipping_leaves_a_zero_gradient_at_zero() -> None:
    assert torch.equal(clipped(torch.zeros(3, WIDTH), 1.0), torch.zeros(3, WIDTH))


def test_adam_is_torchs_adam_where_all_rows_are_chosen() -> None:
    table = torch.zeros(SLOTS, WIDTH, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.03, betas=(0.8, 0.95), eps=1e-10)
    writer, moments, mine = Adam(learning_rate=0.03, beta_1=0.8, beta_2=0.95, epsilon=1e-10), Moments(), torch.zeros(SLOTS, WIDTH)
    for step in range(6):
        address, gradient = random_address(9, step), random_gradient(9, step + 50)
        table.grad = table_gradient(table, address, gradient)
        optimizer.step()
        mine += change(writer, address, gradient, torch.arange(SLOTS), moments=moments)
        torch.testing.assert_close(mine, table.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_adam_is_one_torch_adam_a_row_that_steps_only_when_its_row_is_chosen(max_norm: float | None) -> None:
    rows = [torch.zeros(WIDTH, requires_grad=True) for _ in range(SLOTS)]
    optimizers = [torch.optim.Adam([row], lr=0.02, betas=(0.9, 0.999), eps=1e-12) for row in rows]
    writer, moments, mine = Adam(learning_rate=0.02, max_norm=max_norm), Moments(), torch.zeros(SLOTS, WIDTH)
    for step, chosen in enumerate(CHANGING):
        address, gradient = random_address(9, step), random_gradient(9, step + 50)
        expected = clipped(table_gradient(torch.zeros(SLOTS, WIDTH), address, gradient)[chosen], max_norm)
        for slot, row_gradient in zip(chosen.tolist(), expected, strict=True):
            rows[slot].grad = row_gradient
            optimizers[slot].step()
        mine[chosen] += change(writer, address, gradient, chosen, moments=moments)
        torch.testing.assert_close(mine, torch.stack([row.detach() for row in rows]), atol=1e-6, rtol=1e-5)


def test_adam_keeps_state_only_for_rows_that_were_ever_chosen() -> None:
    moments = Moments()
    for step, chosen in enumerate(CHANGING[:2]):
        change(Adam(), random_address(9, step), random_gradient(9, step), chosen, moments=moments)
    assert sorted(moments._index) == [0, 1, 3, 4, 9, 17, 23]
    assert moments._first is not None
    assert len(moments._first) == 7


def test_moments_of_a_checkpoint_follow_the_gradient_to_its_device() -> None:
    moments = Moments()
    moments.step(CHOSEN, random_gradient(len(CHOSEN), 0), Adam())
    gone_on = Moments.from_tensors(moments.tensors())
    elsewhere = random_gradient(3, 1).to("meta")  # a device without numbers, which every machine has
    assert gone_on.step(CHANGING[1], elsewhere, Adam()).device.type == "meta"
    assert {name: tensor.device.type for name, tensor in gone_on.tensors().items()} == {
        "slots": "cpu", "first": "meta", "second": "meta", "steps": "cpu"
    }  # fmt: skip


def explicit(
    writer: LeastInterference,
    matrix: Tensor,
    gradient: Tensor,
    covariance: Tensor,
    context: Tensor | None = None,
    loss: float | None = None,
) -> Tensor:
    """−η (Wᵀ W + γ W_cᵀ W_c + λ′ (I + μ C))⁻¹ Wᵀ G, where the gradient of what is minimised is zero, in fp64, the rows of G cut."""
    weights, gradient = matrix.double(), gradient.double()
    if writer.max_step is not None:
        longest = writer.max_step / writer.learning_rate
        whole, gradient = gradient, torch.stack([row * min(1.0, longest / row.norm().item()) for row in gradient])
    else:
        whole = gradient
    if writer.max_fall is not None and loss is not None:
        falls = [(writer.learning_rate * step.norm() * row.norm()).item() for step, row in zip(gradient, whole, strict=True)]
        gradient = gradient * min(1.0, writer.max_fall * loss / sum(falls))
    full = covariance.double() if covariance.dim() == 2 else torch.diag(covariance.double())
    ridge = writer.ridge * (weights @ weights.T).diagonal().mean()
    system = weights.T @ weights + ridge * (torch.eye(len(full)) + writer.background_weight * full)
    if context is not None:
        system += writer.context_weight * context.double().T @ context.double()
    return torch.mul(torch.linalg.solve(system, weights.T @ gradient), -writer.learning_rate)


@given(
    tokens=st.integers(1, 14),
    chosen=st.integers(1, 14),
    background_weight=st.sampled_from([0.0, 1.0, 30.0]),
    ridge=st.sampled_from([0.01, 0.3, 1.0, 10.0]),
    max_step=st.sampled_from([None, 5.0, 1000.0]),  # rows of G are about √5 long, so some, or none, are cut
    context_tokens=st.integers(0, 6),
    context_weight=st.sampled_from([0.0, 1.0, 20.0]),
    full=st.booleans(),
    loss=st.sampled_from([None, 0.01, 3.0, 1000.0]),  # rows of G promise 15 each, less where they are cut
    seed=st.integers(0, 1000),
)
def test_least_interference_is_its_formula_with_fewer_tokens_than_slots_and_with_more(
    tokens: int,
    chosen: int,
    background_weight: float,
    ridge: float,
    max_step: float | None,
    context_tokens: int,
    context_weight: float,
    full: bool,
    loss: float | None,
    seed: int,
) -> None:
    writer = LeastInterference(
        learning_rate=3.0, background_weight=background_weight, ridge=ridge, max_step=max_step, max_fall=2.0, context_weight=context_weight
    )
    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(seed))[:chosen].sort().values
    address, gradient = random_address(tokens, seed), random_gradient(tokens, seed + 1)
    background = torch.rand(3, chosen, generator=torch.Generator().manual_seed(seed + 2))
    covariance = background.T @ background if full else 4 * background[0]
    matrix = address_matrix(address, slots)
    context = random_address(context_tokens, seed + 3)
    found = change(writer, address, gradient, slots, covariance=covariance, context=context, loss=loss)
    assert found.shape == (chosen, WIDTH)
    assert found.dtype == torch.float32
    if matrix.any():
        expected = explicit(writer, matrix, gradient, covariance, address_matrix(context, slots), loss).float()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    else:
        assert not found.any()


@pytest.mark.parametrize("tokens", [4, 40])
def test_both_ways_to_solve_are_taken_and_agree_with_the_formula(tokens: int) -> None:
    address, gradient, load = random_address(tokens, 5), random_gradient(tokens, 6), torch.linspace(0, 3, 12)
    writer, slots = LeastInterference(learning_rate=1.0, background_weight=2.0, max_step=None), torch.arange(0, SLOTS, 2)
    assert len(slots) == 12
    expected = explicit(writer, address_matrix(address, slots), gradient, load).float()
    torch.testing.assert_close(change(writer, address, gradient, slots, covariance=load), expected, atol=1e-6, rtol=1e-4)


def test_with_a_small_ridge_the_reads_move_by_the_learning_rate_along_minus_the_gradient() -> None:
    address, gradient = random_address(3, 0), random_gradient(3, 1)
    writer, everything = LeastInterference(learning_rate=0.5, ridge=1e-4, max_step=None), torch.arange(SLOTS)
    moved = dense_read(address, change(writer, address, gradient, everything))
    torch.testing.assert_close(moved, -0.5 * gradient, atol=1e-3, rtol=1e-3)


def test_no_tokens_read_is_asked_to_move_further_than_the_longest_step() -> None:
    address, gradient = random_address(3, 0), random_gradient(3, 1)
    gradient[1] *= 1000
    writer, everything = LeastInterference(learning_rate=0.5, ridge=1e-4, max_step=2.0), torch.arange(SLOTS)
    moved = dense_read(address, change(writer, address, gradient, everything))
    asked = -0.5 * gradient
    asked[1] *= 2.0 / asked[1].norm()
    torch.testing.assert_close(moved, asked, atol=1e-3, rtol=1e-3)


@given(loss=st.floats(1e-6, 1e3), max_fall=st.floats(0.1, 100), max_step=st.sampled_from([None, 0.5]), seed=st.integers(0, 1000))
def test_no_step_promises_more_than_its_share_of_the_loss(loss: float, max_fall: float, max_step: float | None, seed: int) -> None:
    # A token with slots of its own and next to no ridge goes where it is asked to; the loss falls by step times gradient.
    address, gradient, everything = random_address(3, seed), random_gradient(3, seed + 1), torch.arange(SLOTS)
    writer = LeastInterference(ridge=1e-4, max_step=max_step, max_fall=max_fall)
    free = change(LeastInterference(ridge=1e-4, max_step=max_step, max_fall=None), address, gradient, everything, loss=loss)
    held = change(writer, address, gradient, everything, loss=loss)
    promised = -(dense_read(address, held) * gradient).sum().item()
    assert promised <= 1.01 * max_fall * loss
    unbounded = -(dense_read(address, free) * gradient).sum().item()
    if unbounded < 0.9 * max_fall * loss:
        assert torch.equal(held, free)
    torch.testing.assert_close(held, free * (held.norm() / free.norm()), atol=1e-6, rtol=1e-4)  # shorter, in the same direction


def test_where_no_loss_is_known_the_steps_are_not_bounded() -> None:
    address, gradient, everything = random_address(3, 0), random_gradient(3, 1), torch.arange(SLOTS)
    bounded = change(LeastInterference(max_fall=0.01), address, gradient, everything)
    assert torch.equal(bounded, change(LeastInterference(max_fall=None), address, gradient, everything))


def test_a_step_that_is_bounded_needs_no_unit() -> None:
    """In a residual stream ten times as long the gradient is a tenth; the step, where it is bounded, is ten times as long."""
    address, gradient, everything = random_address(3, 0), random_gradient(3, 1), torch.arange(SLOTS)
    writer = LeastInterference(max_fall=0.01, max_step=None)
    one = change(writer, address, gradient, everything, loss=1.0)
    torch.testing.assert_close(change(writer, address, gradient / 10, everything, loss=1.0), 10 * one)


def test_the_more_the_context_weighs_the_less_its_reads_move() -> None:
    # The taught token and that of the context share a slot; each has one of its own.
    taught, context = (Address(torch.tensor([[[0, own]]]), torch.tensor([[[0.6, 0.4]]])) for own in (1, 2))
    gradient, slots = random_gradient(1, 0), torch.tensor([0, 1, 2])
    moved = []
    for weight in (0.0, 1.0, 100.0):
        writer = LeastInterference(context_weight=weight, ridge=0.01, max_step=None)
        rows = torch.zeros(SLOTS, WIDTH)
        rows[slots] = change(writer, taught, gradient, slots, context=context)
        moved.append((dense_read(context, rows).norm().item(), dense_read(taught, rows).norm().item()))
    assert moved[0][0] > 0.5 * moved[0][1]
    assert moved[0][0] > 2 * moved[1][0] > 4 * moved[2][0]
    assert moved[2][1] > 0.9 * moved[0][1]  # the taught read goes where it was asked to, by the row of its own


def test_a_loaded_slot_moves_less_the_more_so_the_larger_mu() -> None:
    # One token reads two slots alike; the background reads the first of them.
    address, gradient = Address(torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.5]]])), random_gradient(1, 0)
    load, slots = torch.tensor([2.0, 0.0]), torch.tensor([0, 1])
    shares = []
    for mu in (0.0, 1.0, 30.0):
        loaded, free = change(LeastInterference(background_weight=mu), address, gradient, slots, covariance=load)
        torch.testing.assert_close(loaded, free / (1 + 2 * mu))
        shares.append((loaded.norm() / free.norm()).item())
    assert shares == pytest.approx([1.0, 1 / 3, 1 / 61], rel=1e-4)


@pytest.mark.parametrize("writer", [SGD(), SGD(max_norm=1.0), Adam(), LeastInterference()])
def test_nothing_chosen_means_nothing_changed(writer: Writer) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert change(writer, random_address(3, 0), random_gradient(3, 0), none).shape == (0, WIDTH)


@pytest.mark.parametrize("writer", [SGD(), Adam(), LeastInterference()])
def test_a_gradient_of_zero_changes_nothing(writer: Writer) -> None:
    assert not change(writer, random_address(3, 0), torch.zeros(3, WIDTH), CHOSEN).any()


@pytest.mark.parametrize(
    "settings",
    [{"name": "sgd", "learning_rate": 0}, {"name": "adam", "beta_1": 1.0}, {"name": "least-interference", "ridge": 0.0}, {"name": "sdg"}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Writer] = TypeAdapter(Writer)
    with pytest.raises(ValidationError):
        adapter.validate_python(settings)
