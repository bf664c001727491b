"""Log-priors are added to what sequences score, all of it and no more, in a search and in generate()."""

import numpy as np
import pytest
import torch

from hf_infeco.static import StaticIndex, StaticLogitsProcessor, constrained_beam_search

from .catalogues import EOS, VOCAB, prompt, random_index, random_sequences, tiny_model
from .test_static_search import by_generate, score_all

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(False, None), (False, EOS), (True, EOS)]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, count).astype(np.float32)


@pytest.mark.parametrize(("variable", "eos"), [*SHAPES, (True, None)])
def test_with_beams_enough_sequences_rank_by_score_and_prior(model, variable, eos):
    index, _ = random_index(1, count=40, length=3, variable=variable)
    values = drawn(index.num_items)
    found = constrained_beam_search(model, prompt(1), index, 40, eos_token_id=eos, log_priors=index.log_priors(values))
    expected, order = (score_all(model, prompt(1), index, eos) + torch.from_numpy(values)).sort(descending=True)
    assert torch.equal(found.ranks[0, : index.num_sequences], order)
    torch.testing.assert_close(found.scores[0, : index.num_sequences], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("variable", "eos"), SHAPES)
def test_generate_finds_the_same_with_the_processor(model, variable, eos):
    index, _ = random_index(0, variable=variable)
    log_priors = index.log_priors(drawn(index.num_items))
    inputs = {"input_ids": prompt()}
    found = constrained_beam_search(model, inputs, index, 8, eos_token_id=eos, log_priors=log_priors)
    ranks, scores = by_generate(model, inputs, index, 8, eos, log_priors=log_priors)
    assert torch.equal(found.ranks, ranks)
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-5)
    plain = constrained_beam_search(model, inputs, index, 8, eos_token_id=eos)
    assert not torch.equal(found.ranks, plain.ranks)


def test_few_beams_find_a_favoured_item_whose_first_tokens_are_not(model):
    """Its prior is on the way from the first token on: two beams would have lost it otherwise."""
    index, _ = random_index(0)
    last = int(constrained_beam_search(model, prompt(1), index, index.num_sequences).ranks[0, -1])
    values = np.zeros(index.num_items)
    values[last] = 1000
    found = constrained_beam_search(model, prompt(1), index, 2, log_priors=index.log_priors(values))
    assert int(found.ranks[0, 0]) == last


def test_values_are_in_the_order_of_build_or_by_id_and_of_eligible_items():
    sequences = random_sequences(3)
    names = [f"item {row}" for row in range(len(sequences))]
    index = StaticIndex.build(sequences, vocab_size=VOCAB, item_ids=names)
    values = drawn(len(names))
    by_place, by_id = index.log_priors(values), index.log_priors(dict(zip(names, values.tolist())))
    assert torch.equal(by_place.sequence, by_id.sequence) and torch.equal(by_place.node, by_id.node)
    assert float(by_place.node[0]) == values.max()
    best = {row: max(values[names.index(name)] for name in index.items(row)) for row in range(index.num_sequences)}
    assert by_place.sequence.tolist() == list(best.values())
    assert index.log_priors({names[0]: 3.0}).sequence.max() == 3 and index.log_priors({names[0]: -3.0}).node[0] == 0
    fewer = index.without([names[int(values.argmax())]])
    assert float(fewer.log_priors(values).node[0]) == np.sort(values)[-2]


def test_what_are_no_priors_of_the_index_is_refused(model):
    index, _ = random_index(0)
    for values in ([1.0], np.full(index.num_items, np.nan)):
        with pytest.raises(ValueError, match="finite numbers, one for each of"):
            index.log_priors(values)
    log_priors = index.log_priors(np.zeros(index.num_items))
    fewer = index.without([0])
    with pytest.raises(ValueError, match="belong to another index"):
        StaticLogitsProcessor(fewer, prompt_length=7, log_priors=log_priors)
    with pytest.raises(ValueError, match="belong to another index"):
        constrained_beam_search(model, prompt(), fewer, 2, log_priors=log_priors)
    with pytest.raises(ValueError, match="those of one index"):
        StaticLogitsProcessor(indexes=[index], index_ids=[0], prompt_length=7, log_priors=log_priors)
