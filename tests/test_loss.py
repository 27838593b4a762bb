"""InfoNCE against closed forms, and which candidates it leaves out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainer.loss import FalseNegatives, Mask, Texts, contrastive_loss, info_nce, with_equal_queries


def _embeddings(batch: int = 4, negatives: int = 3, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator), torch.randn(batch + negatives, dim, generator=generator)


def _on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def _rows_of(masked: Tensor) -> Mask:
    return lambda start, end: masked[start:end]


def _reference(queries: Tensor, candidates: Tensor, temperature: float, masked: Tensor) -> Tensor:
    """InfoNCE term by term, in float64."""
    q, c = (vectors.double() / vectors.double().norm(dim=1, keepdim=True) for vectors in (queries, candidates))
    losses = []
    for i in range(len(q)):
        weights = [torch.exp(q[i] @ c[j] / temperature) for j in range(len(c)) if not masked[i, j]]
        losses.append(-torch.log(torch.exp(q[i] @ c[i] / temperature) / torch.stack(weights).sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.02, 1.0])
@pytest.mark.parametrize(("batch", "negatives"), [(1, 0), (1, 4), (3, 0), (3, 3), (64, 64)])
def test_equal_candidates_give_log_of_their_number(batch: int, negatives: int, temperature: float) -> None:
    queries, candidates = torch.randn(batch, 8), torch.ones(batch + negatives, 8)
    loss = info_nce(queries, candidates, temperature=temperature).loss
    assert loss.item() == pytest.approx(math.log(batch + negatives), abs=1e-5)


def test_three_rows_by_hand() -> None:
    # cosines of each query with the three positives and one hard negative:
    # 0°: 1, 0, -1, 0.5    90°: 0, 1, 0, cos 30°    180°: -1, 0, 1, -0.5
    result = info_nce(_on_circle(0, 90, 180), 5 * _on_circle(0, 90, 180, 60), temperature=1.0)
    e, cos30 = math.e, math.sqrt(3) / 2
    rows = [
        -math.log(e / (e + 1 + 1 / e + math.sqrt(e))),
        -math.log(e / (1 + e + 1 + math.exp(cos30))),
        -math.log(e / (1 / e + 1 + e + 1 / math.sqrt(e))),
    ]
    assert result.loss.item() == pytest.approx(sum(rows) / 3, abs=1e-6)
    assert result.recall_at_1.item() == 1
    assert result.positive_similarity.item() == pytest.approx(1)
    assert result.negative_similarity.item() == pytest.approx((-1 + 0.5 + cos30 - 1 - 0.5) / 9, abs=1e-6)


def test_recall_counts_the_rows_whose_positive_is_nearest() -> None:
    result = info_nce(_on_circle(0, 90, 180), _on_circle(10, 180, 170), temperature=1.0)
    assert result.recall_at_1.item() == pytest.approx(1 / 3)  # 90° is nearer to 10° and 170°; 180° lies on another's
    ties = info_nce(_on_circle(0, 0), _on_circle(30, 30), temperature=1.0)
    assert ties.recall_at_1.item() == 0


def test_orders_do_not_matter() -> None:
    queries, candidates = _embeddings()
    expected = info_nce(queries, candidates, temperature=0.1)
    rows = torch.tensor([2, 0, 3, 1])
    others = torch.tensor([6, 4, 5])
    permuted = info_nce(queries[rows], candidates[torch.cat([rows, others])], temperature=0.1)
    for one, other in zip(expected, permuted, strict=True):
        torch.testing.assert_close(one, other)


def test_lengths_do_not_matter() -> None:
    queries, candidates = _embeddings()
    scaled = info_nce(queries * 7, candidates * torch.arange(1, 8)[:, None], temperature=0.1)
    torch.testing.assert_close(scaled.loss, info_nce(queries, candidates, temperature=0.1).loss)


def test_half_the_temperature_is_twice_the_logits() -> None:
    queries, candidates = _embeddings()
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], candidates[None], dim=-1)
    twice = torch.nn.functional.cross_entropy(2 * (cosines / 0.1), torch.arange(4))
    torch.testing.assert_close(info_nce(queries, candidates, temperature=0.05).loss, twice)


def test_gradient() -> None:
    queries, candidates = (vectors.requires_grad_() for vectors in _embeddings())
    masked = torch.zeros(4, 7, dtype=torch.bool)
    masked[0, 2] = masked[3, 6] = True
    info_nce(queries, candidates, temperature=0.1, mask=_rows_of(masked)).loss.backward()  # type: ignore[no-untyped-call]
    for name, vectors in (("queries", queries), ("candidates", candidates)):
        both = {"queries": queries.detach(), "candidates": candidates.detach()}
        assert vectors.grad is not None
        numeric = torch.zeros(vectors.shape, dtype=torch.float64)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in vectors.shape)).tolist():
            step = torch.zeros(vectors.shape, dtype=torch.float64)
            step[tuple(index)] = 1e-5
            up, down = (
                _reference(**both | {name: both[name].double() + sign * step}, temperature=0.1, masked=masked)
                for sign in (1, -1)
            )
            numeric[tuple(index)] = (up - down) / 2e-5
        torch.testing.assert_close(vectors.grad.double(), numeric, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    queries, candidates = (vectors.to(dtype) for vectors in _embeddings())
    result = info_nce(queries, candidates, temperature=0.02)
    assert {value.dtype for value in result} == {torch.float32}
    nothing = torch.zeros(4, 7, dtype=torch.bool)
    assert result.loss.item() == pytest.approx(_reference(queries, candidates, 0.02, nothing).item(), rel=1e-5)


def test_a_masked_candidate_is_as_if_absent() -> None:
    queries, candidates = _embeddings(batch=1, negatives=3)
    masked = torch.tensor([[False, False, True, False]])
    without = info_nce(queries, candidates[[0, 1, 3]], temperature=0.1)
    result = info_nce(queries, candidates, temperature=0.1, mask=_rows_of(masked))
    assert result.masked_share.item() == pytest.approx(1 / 3)
    for one, other in zip(result._replace(masked_share=without.masked_share), without, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_with_nothing_but_its_positive() -> None:
    queries, candidates = (vectors.requires_grad_() for vectors in _embeddings(batch=2, negatives=1))
    masked = torch.tensor([[False, True, True], [True, False, True]])
    result = info_nce(queries, candidates, temperature=0.02, mask=_rows_of(masked))
    assert result.loss.item() == 0
    assert result.recall_at_1.item() == 1
    assert result.negative_similarity.item() == 0
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert queries.grad is not None
    assert not queries.grad.any()


def _masked(queries: str, positives: str, negatives: str = "") -> list[str]:
    """Write the mask as one string a row, `x` where a candidate is masked; each letter is a text."""
    query_keys, positive_keys, candidate_keys = (
        torch.tensor([ord(text) for text in texts]) for texts in (queries, positives, positives + negatives)
    )
    texts = _texts(query_keys, positive_keys, candidate_keys[len(query_keys) :])
    return ["".join("x" if cell else "." for cell in row) for row in _mask(texts).tolist()]


def _texts(queries: Tensor, positives: Tensor, negatives: Tensor, known: Tensor | None = None) -> Texts:
    """Texts with the keys given, and embeddings that follow from the keys."""
    vectors = [
        torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(key))) for key in [*keys]])
        if len(keys)
        else torch.zeros(0, 8)
        for keys in (queries, positives, negatives)
    ]
    known = torch.zeros((0, 2), dtype=torch.int64) if known is None else known
    one, two, three = vectors
    return Texts(one, two, three, queries, positives, negatives, known)


def _mask(texts: Texts) -> Tensor:
    """The mask that `contrastive_loss` uses."""
    candidates = torch.cat([texts.positive_keys, texts.negative_keys])
    known = with_equal_queries(texts.query_keys, texts.positive_keys, texts.known_positives)
    return FalseNegatives(texts.query_keys, texts.positive_keys, candidates, known).rows(0, len(texts.query_keys))


@pytest.mark.parametrize(
    ("queries", "positives", "negatives", "expected"),
    [
        pytest.param("abc", "xyz", "uvw", ["......", "......", "......"], id="all different"),
        pytest.param("abc", "xyx", "", ["..x", "...", "x.."], id="recurring label"),
        pytest.param("ab", "xy", "yx", ["...x", "..x."], id="a label is the other row's hard negative"),
        pytest.param("ab", "xy", "xz", ["..x.", "...."], id="hard negative repeats the positive"),
        pytest.param("aab", "xyz", "uvw", [".x....", "x.....", "......"], id="equal queries share their positives"),
        pytest.param("aab", "xyz", "yuv", [".x.x..", "x..x..", "......"], id="and hard negatives equal to those"),
        pytest.param("ab", "xa", "bc", [".x..", "..x."], id="candidate repeats the query"),
        pytest.param("aa", "xx", "", [".x", "x."], id="the same example twice"),
        pytest.param("a", "a", "a", [".x"], id="own positive stays though it repeats the query"),
        pytest.param("ab", "xy", "", ["..", ".."], id="no hard negatives"),
    ],
)
def test_false_negatives(queries: str, positives: str, negatives: str, expected: list[str]) -> None:
    assert _masked(queries, positives, negatives) == expected


def test_own_positive_is_never_masked() -> None:
    for seed in range(50):
        keys = torch.randint(0, 4, (3, 16), generator=torch.Generator().manual_seed(seed))
        mask = _mask(_texts(*keys))
        assert mask.shape == (16, 32)
        assert not mask.diagonal().any()


def test_known_positives_of_the_dataset_are_masked() -> None:
    known = torch.tensor([[0, ord("y")], [0, ord("u")], [0, ord("x")], [1, ord("w")]])
    queries, positives, negatives = (torch.tensor([ord(text) for text in texts]) for texts in ("ab", "xy", "uvw"))
    mask = _mask(_texts(queries, positives, negatives, known))
    assert ["".join("x" if cell else "." for cell in row) for row in mask.tolist()] == [".xx..", "....x"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num_negatives", [0, 5])
def test_a_few_rows_at_a_time_give_the_whole(
    symmetric: bool, num_negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with equal queries and recurring positives in different pieces."""
    keys = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[3, 100], [11, 102]])
    texts = _texts(keys[0], keys[1], torch.arange(100, 100 + num_negatives), known)
    texts.symmetric = symmetric
    found = []
    for at_once in (1 << 22, 40, 1):
        monkeypatch.setattr("trainer.loss._LOGITS_AT_ONCE", at_once)
        columns = [vectors.double().requires_grad_() for vectors in (texts.queries, texts.positives, texts.negatives)]
        piece = replace(texts, queries=columns[0], positives=columns[1], negatives=columns[2])
        result = contrastive_loss(piece, temperature=0.05)
        result.loss.backward()  # type: ignore[no-untyped-call]
        found.append([*result, *(column.grad for column in columns)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12, equal_nan=True)


def test_memory_does_not_grow_with_the_square_of_the_batch() -> None:
    """The largest tensor kept for the backward pass has as many numbers as the embeddings, not as the similarities."""
    num = 4_096
    queries, candidates = torch.randn(num, 4, requires_grad=True), torch.randn(2 * num, 4, requires_grad=True)
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        info_nce(queries, candidates, temperature=0.02)
    assert 0 < largest <= candidates.numel()


def test_reciprocal_ranks_and_shares() -> None:
    # 0°: its positive at 10° is first; 90°: its positive at 180° comes after 10°, 170° and the hard negative at 80°
    masked = torch.zeros(3, 4, dtype=torch.bool)
    result = info_nce(_on_circle(0, 90, 180), _on_circle(10, 180, 170, 80), temperature=1.0)
    assert result.mrr.item() == pytest.approx((1 + 1 / 4 + 1 / 2) / 3)
    assert result.masked_share.item() == 0
    assert result.hard_negative_similarity.item() == pytest.approx(
        sum(math.cos(math.radians(degrees)) for degrees in (80, 10, 100)) / 3, abs=1e-6
    )
    masked[1, 0] = masked[1, 3] = True
    result = info_nce(_on_circle(0, 90, 180), _on_circle(10, 180, 170, 80), temperature=1.0, mask=_rows_of(masked))
    assert result.mrr.item() == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert result.masked_share.item() == pytest.approx(2 / 9)


def test_matryoshka_is_the_mean_over_the_cuts() -> None:
    texts = _texts(torch.arange(4), torch.arange(4, 8), torch.arange(8, 10))
    texts.symmetric = True
    cuts = [
        contrastive_loss(
            replace(texts, **{name: getattr(texts, name)[:, :dim] for name in ("queries", "positives", "negatives")}),
            temperature=0.1,
        ).loss
        for dim in (8, 4, 2)
    ]
    result = contrastive_loss(texts, temperature=0.1, dims=[4, 2])
    torch.testing.assert_close(result.loss, torch.stack(cuts).mean())
    torch.testing.assert_close(contrastive_loss(texts, temperature=0.1, dims=[8]).loss, cuts[0])
