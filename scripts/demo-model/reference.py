#!/usr/bin/env python3
"""Writes the logits that Hugging Face transformers computes with the demo model, for the engine's tests.

Usage (the environment of train.py):
    OMP_NUM_THREADS=1 venv/bin/python scripts/demo-model/reference.py \
        --model agent/engine/demo-model --out agent/engine/tests/reference.safetensors

For each prompt N: N.ids, int64 [tokens]; N.f32 and N.bf16, the logits [tokens, vocabulary] that each arithmetic
gives on the same bf16 weights.
"""

import argparse
import hashlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

PROMPTS = [
    "<|im_start|>user\nWhat is RTMR3?<|im_end|>\n<|im_start|>assistant\nRTMR3 is a run-time",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße, 🦀! 1+1?<|im_end|>\n",
    "The",
]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(arguments.model)
    tensors = {}
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        model = transformers.Qwen3ForCausalLM.from_pretrained(
            arguments.model, dtype=dtype, attn_implementation="eager").eval()
        for index, prompt in enumerate(PROMPTS):
            ids = torch.tensor(tokenizer(prompt, add_special_tokens=False).input_ids)
            tensors[f"{index}.ids"] = ids
            tensors[f"{index}.{name}"] = model(ids[None]).logits[0].contiguous()
    digest = hashlib.sha256((arguments.model / "model.safetensors").read_bytes()).hexdigest()
    save_file(tensors, arguments.out, {
        "torch": torch.__version__, "transformers": transformers.__version__, "model.safetensors": digest})
    arguments.out.chmod(0o644)
    for index in range(len(PROMPTS)):
        wide, narrow = tensors[f"{index}.f32"], tensors[f"{index}.bf16"].float()
        print(f"prompt {index}: {wide.shape[0]} tokens, bf16 differs from f32 by at most {(wide - narrow).abs().max():.3f}")


if __name__ == "__main__":
    main()
