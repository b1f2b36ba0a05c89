"""The small pretrained language model and its text that the benchmarks judge sparsifiers by.

Stories260K (Llama's layout, hidden size 64, 5 layers) as transformers' `LlamaForCausalLM`, and TinyStories already cut
into its tokens. Both lie in the folder of development data, which is not part of the project.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsewright.models import ensure_torchvision_imports

ASSETS = Path(os.environ.get("SPARSEWRIGHT_ASSETS", Path(__file__).parents[2] / "shared" / "assets")) / "lm"
# Longest story that the model was trained on.
LENGTH = 512


def stories_model() -> nn.Module:
    """Stories260K in evaluation mode."""
    ensure_torchvision_imports()
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = json.loads((ASSETS / "stories260k_config.json").read_text(encoding="utf-8"))
    heads, groups = sizes["n_heads"], sizes["n_kv_heads"]
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    stored = load_file(ASSETS / "stories260k.safetensors")
    state = {"model.embed_tokens.weight": stored["tok_embeddings.weight"], "model.norm.weight": stored["norm.weight"]}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for layer in range(sizes["n_layers"]):
        old, new = f"layers.{layer}", f"model.layers.{layer}"
        state[f"{new}.self_attn.q_proj.weight"] = _halves(stored[f"{old}.attention.wq.weight"], heads)
        state[f"{new}.self_attn.k_proj.weight"] = _halves(stored[f"{old}.attention.wk.weight"], groups)
        for theirs, ours in (
            ("attention.wv", "self_attn.v_proj"),
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            state[f"{new}.{ours}.weight"] = stored[f"{old}.{theirs}.weight"]
    model.load_state_dict(state)
    return model.eval()


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of rotary pairs that lie side by side, as transformers wants them: first halves, then second ones."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def stories() -> list[Tensor]:
    """The tokens of every story, at most `LENGTH` of each."""
    with np.load(ASSETS / "tinystories_dev_tokens.npz") as held:
        tokens, offsets = held["tokens"].astype(np.int64), held["offsets"]
    parts = zip(offsets[:-1], offsets[1:])
    return [torch.from_numpy(tokens[begin : min(end, begin + LENGTH)]) for begin, end in parts]


def batches(texts: Sequence[Tensor], size: int = 16) -> list[dict[str, Tensor]]:
    """Texts of like length side by side, padded behind; `labels` leave the padding out."""
    ordered = sorted(texts, key=len)
    made = []
    for begin in range(0, len(ordered), size):
        some = ordered[begin : begin + size]
        ids = nn.utils.rnn.pad_sequence(list(some), batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in some], batch_first=True)
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@torch.no_grad()
def perplexity(model: nn.Module, data: Sequence[dict[str, Tensor]]) -> float:
    """exp of the mean next-token loss over all tokens."""
    total, count = 0.0, 0
    for batch in data:
        logits = model(**batch).logits[:, :-1].float()
        targets = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        count += int((targets != -100).sum())
    return float(np.exp(total / count))
