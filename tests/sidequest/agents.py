"""A tiny random Llama with a tokenizer of its own, and scripts that say what its threads write."""

import functools

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from hf_infeco.sidequest import SideQuestConfig, SideQuestSession
from hf_infeco.sidequest.config import TRIGGER

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes, and the words of these tests."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    words = [
        find("it"),
        call("it"),
        TRIGGER,
        "system user assistant tool Use find(query). Where is it? Open In use del_cursors",
    ]
    bare.train_from_iterator(words, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|pad|>", additional_special_tokens=SPECIAL[:1]
    )
    made.chat_template = template
    return made


@functools.cache
def encoded(text: str) -> list[int]:
    return tokenizer()(text)["input_ids"]


def model(seed: int = 0, layers: int = 1, **settings) -> LlamaForCausalLM:
    """In double precision, so that no sum's order decides a token."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, head_dim=8)
    values = dict(vocab_size=len(tokenizer()), num_key_value_heads=2, initializer_range=0.3, eos_token_id=None)
    config = LlamaConfig(**{**sizes, **values, "max_position_embeddings": 8192, **settings})
    return LlamaForCausalLM(config).double().eval()


def adapted() -> PeftModel:
    """Two LoRA adapters with weights of their own over one model."""
    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    agent = get_peft_model(model(layers=2), lora, adapter_name="agent")
    agent.add_adapter("side", lora)
    return agent.double().eval()


class Script(LogitsProcessor):
    """
    Makes the main thread write `turns`, one after another, and a side thread forked before turn t `commands[t]`.
    Where there is no text, the model's own scores decide, until `length` tokens are written.
    """

    def __init__(self, turns: list, commands: list = (), length: int = 20):
        self.turns, self.commands, self.length = turns, commands, length
        self.scores: dict[tuple[int, ...], torch.Tensor] = {}  # by the tokens that they are behind

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores[tuple(input_ids[0].tolist())] = scores[0]
        start, end = tokenizer().convert_tokens_to_ids("<|im_start|>"), tokenizer().eos_token_id
        header = torch.tensor([start, *encoded("assistant\n")])
        turns = (input_ids[0].unfold(0, len(header), 1) == header).all(1).nonzero().flatten().tolist()
        written = input_ids[0, turns[-1] + len(header) :].tolist()
        before = (input_ids[0, : turns[-1]] == start).nonzero().flatten().tolist()[-1]
        is_side = tokenizer().decode(input_ids[0, before + 1 : turns[-1]]) == f"user\n{TRIGGER}<|im_end|>\n"
        texts = self.commands if is_side else self.turns
        wanted = texts[len(turns) - 1] if len(turns) <= len(texts) else None
        if wanted is None and len(written) < self.length:
            return scores.index_fill(1, torch.arange(256, scores.shape[1]), -torch.inf)
        token = end if wanted is None else [*encoded(wanted), end][len(written)]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def find(query: str) -> str:
    """
    Looks something up.

    Args:
        query: what to look up
    """
    return f"All that is known of {query}: " + "it is far away, " * 5


def fail(query: str) -> str:
    """
    Never works.

    Args:
        query: anything
    """
    raise RuntimeError(f"no route to {query}")


def call(query: str, thought: str = "", tool: str = "find") -> str:
    return f'{thought}{{"tool": "{tool}", "query": "{query}"}}'


QUESTION = [{"role": "system", "content": "Use find(query)."}, {"role": "user", "content": "Where is it?"}]


def session(turns: list, commands: list = (), tools=(find, fail), agent=None, **options) -> SideQuestSession:
    """With the words of `turns` and `commands` in the mouth of a tiny model; other options are those of the config."""
    others = {name: options.pop(name) for name in ("policy", "tool_format") if name in options}
    script = LogitsProcessorList([Script(turns, commands, options.pop("length", 20))])
    config = SideQuestConfig(**{"interval": 2, **options})
    return SideQuestSession(agent or model(), tokenizer(), tools, config, logits_processor=script, **others)
