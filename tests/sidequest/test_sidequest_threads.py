"""Threads over caches against one forward over all tokens with a mask: forks, evictions, adapters, every cache."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig, cache_nbytes
from hf_infeco.sidequest import KeepAll, SideQuestConfig, SideQuestSession, evict, fork
from hf_infeco.sidequest.threads import PackedThreads, SeparateThreads

from .agents import QUESTION, adapted, call, find, model, session, tokenizer

EXACT = InnerQConfig(recent=10**6)


class Told:
    """What a thread was given: its tokens, and which earlier positions each of them saw."""

    def __init__(self, parent: "Told | None" = None):
        self.ids: list[int] = list(parent.ids) if parent else []
        self.rows: list[set[int]] = [set(row) for row in parent.rows] if parent else []
        self.gone: set[int] = set(parent.gone) if parent else set()

    def add(self, tokens: list[int]) -> None:
        for token in tokens:
            self.ids.append(token)
            self.rows.append(set(range(len(self.ids))) - self.gone)

    def logits(self, agent) -> torch.Tensor:
        """Behind the last token, by one forward over all of them."""
        sees = torch.tensor([[column in row for column in range(len(self.ids))] for row in self.rows])
        mask = torch.zeros(sees.shape, dtype=agent.dtype).masked_fill(~sees, torch.finfo(agent.dtype).min)
        with torch.no_grad():
            return agent(input_ids=torch.tensor([self.ids]), attention_mask=mask[None, None]).logits[0, -1]


def check_steps(agent, threads, seed: int) -> None:
    """Tokens, forks and evictions at random, then what each thread that is left computes."""
    rng = random.Random(seed)
    main, told = threads.open(()), Told()
    alive = {main: told}
    for _ in range(6):
        operation = rng.choice(["feed", "feed", "feed", "fork", "evict", "close"])
        if operation == "fork" and told.ids and len(alive) < 3:
            alive[threads.fork(main, ())] = Told(told)
        elif operation == "evict" and told.ids:
            begin = rng.randrange(len(told.ids))
            end = rng.randint(begin, len(told.ids) - 1)  # the last token stays: somebody has to be looked at
            spans = {place for place in range(begin, end)} - told.gone
            threads.evict(main, [(place, place + 1) for place in spans])
            told.gone |= spans
        elif operation == "close" and len(alive) > 1:
            gone = rng.choice([thread for thread in alive if thread is not main])
            threads.close(gone)
            del alive[gone]
        else:
            feed(threads, alive, rng, rng.sample(list(alive), rng.randint(1, len(alive))), 5)
    for (thread, each), logits in zip(alive.items(), feed(threads, alive, rng, list(alive), 1), strict=True):
        torch.testing.assert_close(logits, each.logits(agent).float(), rtol=1e-4, atol=1e-4)
        assert thread.position == len(each.ids) and thread.resident == len(each.ids) - len(each.gone)


def feed(threads, alive, rng, fed, longest):
    feeds = [(thread, [rng.randrange(200) for _ in range(rng.randint(1, longest))]) for thread in fed]
    for thread, tokens in feeds:
        alive[thread].add(tokens)
    return threads.step(feeds)


@pytest.mark.parametrize("kind", [PackedThreads, SeparateThreads])
def test_no_fork_and_no_eviction_ever_corrupts_a_thread(kind):
    """On whole models, a few of the thousand sequences that `test_cache_operations` takes caches through."""
    agent = model(layers=2, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    for seed in range(100):
        check_steps(agent, kind(agent), seed)


def caches():
    yield "dynamic", lambda agent: DynamicCache(config=agent.config)
    yield "innerq", lambda agent: InnerQCache(agent.config, EXACT)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(("kind", "make"), list(caches()))
def test_after_evict_logits_are_those_of_a_mask_that_hides_the_spans(kind, make, patched):
    agent = model(seed=1, layers=2).float()
    told, rng = Told(), random.Random(0)
    told.add([rng.randrange(200) for _ in range(100)])
    if patched:
        hf_infeco.patch(agent, s2o=False, innerq=EXACT)
    cache = make(agent)
    with torch.no_grad():
        agent(input_ids=torch.tensor([told.ids]), **{CACHE_NAME: cache})
        evict(cache, [(10, 50), (70, 71)])
        told.gone = {*range(10, 50), 70}
        for count in (1, 30, 1):
            tokens = [rng.randrange(200) for _ in range(count)]
            told.add(tokens)
            logits = agent(input_ids=torch.tensor([tokens]), **{CACHE_NAME: cache}).logits[0, -1]
            hf_infeco.unpatch(agent) if patched else None
            torch.testing.assert_close(logits, told.logits(agent), rtol=1e-4, atol=1e-4)
            hf_infeco.patch(agent, s2o=False, innerq=EXACT) if patched else None
    assert cache.get_seq_length() == len(told.ids)


@pytest.mark.parametrize(("kind", "make"), list(caches()))
def test_memory_falls_by_the_evicted_bytes(kind, make):
    agent = model()
    cache = make(agent)
    with torch.no_grad():
        agent(input_ids=torch.arange(200)[None], **{CACHE_NAME: cache})
    before = cache_nbytes(cache)
    evict(cache, [(20, 100)])
    freed = 80 * before // 200
    assert freed - 8 * 200 <= before - cache_nbytes(cache) <= freed  # positions of what is left are the difference


def test_a_fork_and_its_origin_evict_apart():
    agent = model()
    cache = DynamicCache(config=agent.config)
    with torch.no_grad():
        agent(input_ids=torch.arange(50)[None], **{CACHE_NAME: cache})
    side = fork(cache)
    evict(side, [(0, 30)])
    assert cache.layers[0].keys.shape[2] == 50 and side.layers[0].keys.shape[2] == 20


def test_of_sliding_windows_alone_nothing_can_be_evicted_and_the_error_says_so():
    from transformers import MistralConfig

    cache = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=8))
    cache.update(torch.zeros(2, 2, 12, 4), torch.zeros(2, 2, 12, 4), 0)
    with pytest.raises(ValueError, match="All layers of this cache are sliding windows"):
        evict(cache, [(2, 5)])
    with pytest.raises(ValueError, match=r"span \(2, 13\) is not within the 12 tokens"):
        evict(cache, [(2, 13)])


def test_a_span_beyond_the_cache_is_refused():
    with pytest.raises(ValueError, match=r"span \(3, 60\) is not within the 0 tokens"):
        evict(DynamicCache(), [(3, 60)])


TURNS = [call("a", "First. "), call("b"), call("c", "Then [1]. "), call("d"), None]
DELETE = [None, None, '{"del_cursors": [0]}']


def test_a_patched_model_with_exact_innerq_layers_tidies_its_context_as_a_plain_one():
    plain = session(TURNS, DELETE, synchronous=True, length=25).run(QUESTION)
    agent = hf_infeco.patch(model(), s2o=False, innerq=EXACT)
    packed = session(TURNS, DELETE, synchronous=True, length=25, agent=agent).run(QUESTION)
    assert packed.messages == plain.messages and packed.record.deleted == [(2, 0)]


def test_packed_tokens_of_an_innerq_cache_are_freed_tile_by_tile():
    agent = hf_infeco.patch(model(head_dim=32).float(), s2o=False, innerq=InnerQConfig(sink=3, recent=5))
    result = session(TURNS, DELETE, synchronous=True, agent=agent).run(QUESTION)
    (evicted,) = (event for event in result.record.events if event.kind == "evicted")
    assert evicted.nbytes > 0 and result.record.deleted == [(2, 0)]


def test_an_innerq_cache_cannot_be_shared_by_threads_and_says_so():
    agent = hf_infeco.patch(model(), s2o=False)
    with pytest.raises(ValueError, match="InnerQLayer, whose tokens cannot be those of several threads"):
        session(TURNS, agent=agent).run(QUESTION)


def test_sliding_windows_cannot_be_shared_and_are_left_alone_if_forked():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    config = MistralConfig(
        vocab_size=len(tokenizer()), num_key_value_heads=2, sliding_window=64, eos_token_id=None, **sizes
    )
    agent = MistralForCausalLM(config).eval()
    with pytest.raises(ValueError, match="DynamicSlidingWindowLayer, whose tokens"):
        session(TURNS, agent=agent).run(QUESTION)


@pytest.mark.parametrize("side", [("side",), ("agent", "side"), ()])
def test_each_token_of_a_shared_forward_goes_through_its_threads_adapters(side):
    agent, seen = adapted(), []
    names = dict(main_adapters=("agent",), side_adapters=side)
    trains = {name: weight.requires_grad for name, weight in agent.named_parameters()}
    for synchronous in (False, True):
        each = session(TURNS, agent=agent, synchronous=synchronous, interval=4, length=25, **names)
        result = each.run(QUESTION)
        seen.append(each.logits_processor[0].scores)
        assert len(result.record.side_texts) == 1
    beside, waited = seen
    assert beside.keys() == waited.keys()
    for tokens in beside:
        torch.testing.assert_close(beside[tokens], waited[tokens])
    assert agent.active_adapters == ["agent"]
    assert trains == {name: weight.requires_grad for name, weight in agent.named_parameters()}
    assert not [name for module in agent.modules() for name in vars(module) if name == "forward"]


def test_adapters_make_a_difference_and_missing_ones_are_named():
    agent = adapted()
    texts = [
        session(TURNS, agent=agent, length=25, main_adapters=names).run(QUESTION).answer
        for names in (("agent",), ("side",))
    ]
    assert texts[0] != texts[1]
    with pytest.raises(ValueError, match=r"no adapter \['judge'\]; it has \['agent', 'side'\]"):
        session(TURNS, agent=agent, main_adapters=("judge",)).run(QUESTION)


def test_an_attention_that_takes_no_mask_of_pairs_is_refused():
    agent = model()
    agent.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2', which takes no mask"):
        SideQuestSession(agent, tokenizer(), [find], SideQuestConfig()).run(QUESTION)


@pytest.mark.parametrize("kind", [PackedThreads, SeparateThreads])
def test_the_caches_memory_goes_with_the_last_thread(kind):
    """Without waiting for the cycle collector, which a conversation and its generators need."""
    threads = kind(model())
    main = threads.open(())
    threads.step([(main, [1, 2, 3])])
    side = threads.fork(main, ())
    threads.step([(side, [4])])
    assert threads.nbytes > 0
    threads.finish()
    assert threads.nbytes == 0 and main.cache is None and side.cache is None


def test_adapters_of_expert_weights_are_switched_between_forwards_and_refused_in_shared_ones():
    """PEFT's `target_parameters`, as for the experts of a mixture: the delta is in the weight, for all tokens."""
    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules=[], target_parameters=["mlp.down_proj.weight"], init_lora_weights=False)
    agent = get_peft_model(model(layers=2), lora, adapter_name="side").double().eval()
    with pytest.raises(ValueError, match="ParamWrapper cannot take each token"):
        session(TURNS, agent=agent, side_adapters=("side",)).run(QUESTION)
    told = [*TURNS[:4], None]
    plain = session(told, synchronous=True, agent=model(seed=0, layers=2)).run(QUESTION)
    switched = session(told, synchronous=True, agent=agent, side_adapters=("side",)).run(QUESTION)
    assert switched.answer == reference_answer(agent, told)
    assert plain.record.side_texts != switched.record.side_texts
    assert agent.active_adapters == ["side"]


def reference_answer(agent, turns: list) -> str:
    """What the model without its adapter answers."""
    with agent.disable_adapter():
        return session(turns, policy=KeepAll(), agent=agent).run(QUESTION).answer
