"""Small models made on this machine, so that the whole path runs without a GPU, a network or a download.

A made model is a complete Hugging Face directory (weights, tokenizer, chat template) with random weights. It is real to
vLLM and to clients, only its text means nothing. The same name gives the same bytes on every machine, so two replicas,
or two runs on two machines, can be compared token by token.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Part of the directory name: raise it when the code below makes other bytes from the same architecture.
RECIPE_VERSION = 1
VOCAB_SIZE = 2048
MAX_POSITION_TOKENS = 2048
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)  # ids 0, 1, 2: the trainer numbers them first

# Layers must add to the residual stream about as much as the embedding does; with the usual small values the next token
# would depend on the last one alone and greedy decoding would run into a short cycle.
_PROJECTION_GAIN = 1.5
# Standard deviation of the logits: sampling at temperature 1 then gives the likeliest token about one time in five.
_LOGIT_DEVIATION = 3.0

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeModel:
    """The recipe of one made model: its architecture, as in `config.json`, and the seed of its weights."""

    architecture: Mapping[str, Any]
    seed: int


_LLAMA: Mapping[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False}

MADE_MODELS: Mapping[str, MadeModel] = MappingProxyType(
    {
        # Smallest dense model: starts in seconds, tensor parallel up to 4, pipeline parallel up to 4.
        "tiny-llama": MadeModel(
            architecture={
                **_LLAMA,
                "hidden_size": 128,
                "intermediate_size": 352,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
            },
            seed=1,
        ),
        # Smallest mixture of experts: 8 experts, 2 for each token.
        "tiny-moe": MadeModel(
            architecture={
                "architectures": ["MixtralForCausalLM"],
                "model_type": "mixtral",
                "hidden_size": 128,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
            },
            seed=2,
        ),
        # 98.6 M parameters (394 MB): large enough that two cores are busy with the engine, not the client.
        "bench-100m": MadeModel(
            architecture={
                **_LLAMA,
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "num_hidden_layers": 8,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 64,
            },
            seed=3,
        ),
    }
)


def cache_root(environ: Mapping[str, str]) -> Path:
    """The folder for everything Archipelago can make again: $ARCHIPELAGO_CACHE, else the user's cache folder."""
    if chosen := environ.get("ARCHIPELAGO_CACHE"):
        return Path(chosen).expanduser().absolute()
    user_cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~"), ".cache").expanduser()
    return Path(user_cache) / "archipelago"


def hf_config(name: str) -> dict[str, Any]:
    """The content of `config.json` of a made model, without making it. KeyError for an unknown name."""
    return {
        **MADE_MODELS[name].architecture,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITION_TOKENS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index(TURN_END),
        "dtype": "float32",
    }


def model_path(name: str, root: Path) -> Path:
    """Where `make_model` puts a made model; the end of the folder's name changes with its recipe."""
    recipe = [
        RECIPE_VERSION,
        MADE_MODELS[name].seed,
        hf_config(name),
        _read("corpus.txt"),
        _read("chat_template.jinja"),
    ]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return root / "models" / f"{name}-{digest}"


def make_model(name: str, root: Path) -> Path:
    """Make a model unless it is there already, and return its directory.

    Several processes may do this at once: each writes a folder of its own, the first to finish gives it its name, and
    a folder of that name is therefore always complete. KeyError for an unknown name; OSError when it cannot be written.
    """
    path = model_path(name, root)
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        draft.chmod(0o755)  # mkdtemp's 0o700 would hide the model from other users of a shared cache
        _write_tokenizer(draft)
        _write_configs(draft, name)
        _write_weights(draft, name)
        draft.rename(path)
    except OSError:
        if not path.is_dir():  # else: another process was first with the same bytes
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def iter_weight_shapes(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a made model, in the order in which they are drawn."""
    config = hf_config(name)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield from _iter_attention_shapes(prefix + "self_attn.", config)
        yield from _iter_feed_forward_shapes(prefix, config)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _iter_attention_shapes(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    yield prefix + "q_proj.weight", (queries, hidden)
    yield prefix + "k_proj.weight", (keys, hidden)
    yield prefix + "v_proj.weight", (keys, hidden)
    yield prefix + "o_proj.weight", (hidden, queries)


def _iter_feed_forward_shapes(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width, experts = config["hidden_size"], config["intermediate_size"], config.get("num_local_experts", 0)
    if experts:
        yield prefix + "block_sparse_moe.gate.weight", (experts, hidden)
    blocks = [f"block_sparse_moe.experts.{expert}." for expert in range(experts)] or ["mlp."]
    gate, up, down = ("w1", "w3", "w2") if experts else ("gate_proj", "up_proj", "down_proj")
    for block in blocks:
        yield f"{prefix}{block}{gate}.weight", (width, hidden)
        yield f"{prefix}{block}{up}.weight", (width, hidden)
        yield f"{prefix}{block}{down}.weight", (hidden, width)


def _draw(generator: "np.random.Generator", name: str, shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
    """One float32 tensor: ones for a norm, else uniform with a standard deviation of gain / sqrt(inputs).

    Uniform rather than normal, because it takes nothing but exact operations: no two machines can differ in a last bit.
    """
    import numpy as np

    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = generator.random(shape, np.float32) - np.float32(0.5)
    gains = {"model.embed_tokens.weight": shape[1] ** 0.5, "lm_head.weight": _LOGIT_DEVIATION}
    deviation = gains.get(name, _PROJECTION_GAIN) / shape[1] ** 0.5
    values *= np.float32(deviation * 12**0.5)  # a uniform distribution of width 1 has the deviation 1/sqrt(12)
    if name == "lm_head.weight":
        # Never the most likely token, so a greedy reply has exactly as many tokens as were asked for.
        values[: len(SPECIAL_TOKENS)] = 0
    return values


def _write_weights(folder: Path, name: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    generator = np.random.Generator(np.random.PCG64(MADE_MODELS[name].seed))
    tensors = {tensor: _draw(generator, tensor, shape) for tensor, shape in iter_weight_shapes(name)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer: it can encode any text, and its vocabulary has exactly VOCAB_SIZE entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_read("corpus.txt").splitlines(keepends=True), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"corpus.txt is too short: {tokenizer.get_vocab_size()} tokens learnt of {VOCAB_SIZE}")
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_configs(folder: Path, name: str) -> None:
    config = hf_config(name)
    generation = {key: config[key] for key in ("eos_token_id", "pad_token_id")}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START],
        "model_max_length": MAX_POSITION_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": _read("chat_template.jinja"),
    }
    contents = {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}
    for file_name, content in contents.items():
        (folder / file_name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(file_name: str) -> str:
    return (_HERE / file_name).read_text(encoding="utf-8")
