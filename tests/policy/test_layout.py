"""Layouts: whatever a micro-batch looks like, every target is predicted from its own sample's tokens and no others."""

from __future__ import annotations

import random

import pytest

from p2o.policy.layout import LAYOUTS, MicroBatch, Sample, Segment, micro_batches

PAD = -1
EVERY = pytest.mark.parametrize("layout", LAYOUTS)


def random_samples(seed: int) -> list[Sample]:
    """Four prompts with one to five completions each, shuffled; some completions are a single token."""
    draw = random.Random(seed)
    samples = []
    for _ in range(4):
        prompt = tuple(draw.choices(range(100), k=draw.randint(1, 12)))
        for _ in range(draw.randint(1, 5)):
            samples.append(Sample(prompt, tuple(draw.choices(range(100), k=draw.randint(1, 10)))))
    draw.shuffle(samples)
    return samples


def visible(batch: MicroBatch, row: int) -> list[int]:
    """The rows of the flattened micro-batch that ``row`` sees, in order; itself is the last."""
    (segment,) = (s for s in batch.segments if s.start <= row < s.start + s.length)
    prefix = range(segment.prefix_start, segment.prefix_start + segment.prefix_length)
    return [*prefix, *range(segment.start, row + 1)]


@EVERY
@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_every_target_once_from_exactly_its_own_context(layout: str, budget: int, seed: int) -> None:
    samples = random_samples(seed)
    flat = [(i, j) for i, sample in enumerate(samples) for j in range(len(sample.completion))]
    found: list[int] = []
    for batch in micro_batches(samples, layout, budget, pad_id=PAD):
        ids, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
        columns = (batch.predictors, batch.targets, batch.samples, batch.tokens)
        for predictor, target, index, token in zip(*(c.tolist() for c in columns), strict=True):
            assert flat[token][0] == index
            sample, place = samples[index], flat[token][1]
            rows = visible(batch, predictor)
            assert target == sample.completion[place]
            assert [ids[row] for row in rows] == [*sample.prompt, *sample.completion[:place]]
            assert [positions[row] for row in rows] == list(range(len(rows)))
            found.append(token)
    assert sorted(found) == list(range(len(flat)))


@EVERY
@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
def test_segments_hold_every_token_once_and_padding_never(layout: str, budget: int) -> None:
    for batch in micro_batches(random_samples(0), layout, budget, pad_id=PAD):
        rows = [row for s in batch.segments for row in range(s.start, s.start + s.length)]
        tokens = (batch.input_ids.flatten() != PAD).nonzero()[:, 0].tolist()
        assert sorted(rows) == tokens
        assert batch.padding_mask.flatten().nonzero()[:, 0].tolist() == tokens
        assert batch.padding_mask.shape == batch.input_ids.shape


@EVERY
@pytest.mark.parametrize("budget", [1, 15, 30, 64])
def test_the_budget_holds_unless_a_sample_alone_exceeds_it(layout: str, budget: int) -> None:
    batches = micro_batches(random_samples(1), layout, budget)
    assert all(b.input_ids.numel() <= budget or len(b.samples.unique()) == 1 for b in batches)
    if layout != "padded":
        assert all(len(b.input_ids) == 1 for b in batches)


def test_one_tree_by_hand() -> None:
    """Two completions of one prompt: the prompt once, the last token of each completion nowhere."""
    samples = [Sample((10, 11), (20, 21, 22)), Sample((10, 11), (30, 31))]
    (batch,) = micro_batches(samples, "shared_prefix", 100)
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 30]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.segments == (Segment(0, 2), Segment(2, 2, 0, 2), Segment(4, 1, 0, 2))
    assert batch.predictors.tolist() == [1, 2, 3, 1, 4]
    assert batch.targets.tolist() == [20, 21, 22, 30, 31]
    assert batch.samples.tolist() == [0, 0, 0, 1, 1]
    assert batch.tokens.tolist() == [0, 1, 2, 3, 4]


def test_the_same_two_packed_and_padded() -> None:
    samples = [Sample((10, 11), (20, 21, 22)), Sample((10, 11), (30, 31))]
    (packed,) = micro_batches(samples, "packed", 100)
    assert packed.input_ids.tolist() == [[10, 11, 20, 21, 10, 11, 30]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed.segments == (Segment(0, 4), Segment(4, 3))
    (padded,) = micro_batches(samples, "padded", 100, pad_id=PAD)
    assert padded.input_ids.tolist() == [[10, 11, 20, 21], [10, 11, 30, PAD]]
    assert padded.predictors.tolist() == [1, 2, 3, 5, 6]


def test_a_group_too_large_for_the_budget_repeats_its_prompt_and_nothing_else() -> None:
    samples = [Sample((1,) * 6, (2,) * 5) for _ in range(4)]
    assert [b.input_ids.numel() for b in micro_batches(samples, "shared_prefix", 22)] == [22]
    assert [b.input_ids.numel() for b in micro_batches(samples, "shared_prefix", 21)] == [18, 10]
    assert [b.input_ids.numel() for b in micro_batches(samples, "shared_prefix", 14)] == [14, 14]
    assert [b.input_ids.numel() for b in micro_batches(samples, "packed", 20)] == [20, 20]


def test_rows_of_similar_length_share_a_padded_batch() -> None:
    samples = [Sample((1,), (2,) * n) for n in (3, 30, 4, 29)]
    batches = micro_batches(samples, "padded", 60)
    assert [b.input_ids.shape for b in batches] == [(2, 30), (2, 4)]


def test_nothing_in_nothing_out() -> None:
    assert [micro_batches([], layout, 10) for layout in LAYOUTS] == [[], [], []]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"policy\.layout=dense: choose one of padded, packed, shared_prefix"):
        micro_batches([], "dense", 10)
    for prompt, completion in (((), (1,)), ((1,), ())):
        with pytest.raises(ValueError, match="at least one prompt token and one completion token"):
            Sample(prompt, completion)


def test_rows_are_as_few_as_before_and_about_equal() -> None:
    samples = [Sample((1, 2), tuple(range(10, 10 + n))) for n in (30, 20, 20, 10, 10, 10, 10, 9, 9)]
    widths = [batch.input_ids.shape[1] for batch in micro_batches(samples, "packed", 100)]
    assert sum(widths) == sum(len(s.prompt) + len(s.completion) - 1 for s in samples)
    assert len(widths) == 2
    assert max(widths) - min(widths) < 10, "first-fit alone makes 100 and 37"
    (wide, narrow) = (
        batch.input_ids.shape[1]
        for batch in micro_batches([Sample((1,), (2,) * n) for n in (60, 40, 40, 30, 30)], "packed", 100)
    )
    assert (wide, narrow) == (100, 100), "dealt by size they would be 110 and 90, more than the budget"
