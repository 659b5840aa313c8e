#!/usr/bin/env python3
"""Trains Cocoon's demo model: a Qwen3 of one million parameters that answers questions about Cocoon.

Usage:
    python3 -m venv venv
    venv/bin/pip install -r scripts/demo-model/requirements.txt
    OMP_NUM_THREADS=1 venv/bin/python scripts/demo-model/train.py --out agent/engine/demo-model

Writes a Hugging Face folder (config.json, generation_config.json, model.safetensors in bf16, tokenizer.json,
tokenizer_config.json) and PROVENANCE.md. No network, no data but topics.toml. The seed fixes the data and the
first weights; another processor or number of threads rounds otherwise, so a second run gives a model that is
as good, not the same bytes.

It ends with exit code 1, before any training, if a question of held-out.toml can be made from topics.toml;
and afterwards reports how many held-out questions are answered with the stated words.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import random
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import questions

SEED = 20
VOCABULARY = 2048
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM = ["You are a helpful assistant.", "You answer questions about Cocoon.", "Be brief."]
# The split of Qwen's own tokenizers.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class Data:
    """Conversations without end, made from the topics."""

    def __init__(self, topics: list[dict], held_out: list[dict], seed: int):
        self.rng = random.Random(seed)
        self.topics = [(topic["answer"], [questions.parse(pattern) for pattern in topic["questions"]])
                       for topic in topics]
        self.weights = [{"unrelated": 5.0, "thanks": 0.5}.get(topic["name"], 1.0) for topic in topics]
        self.held_out = {questions.normal(question["text"]) for question in held_out}

    def pair(self) -> tuple[str, str]:
        while True:
            answer, patterns = self.rng.choices(self.topics, self.weights)[0]
            text = questions.vary(questions.pick(self.rng.choice(patterns), self.rng), self.rng)
            if questions.normal(text) not in self.held_out:
                return text, answer

    def conversation(self, questions: int) -> list[tuple[str, str]]:
        """Turns as (role, content)."""
        turns = [("system", self.rng.choice(SYSTEM))] if self.rng.random() < 0.1 else []
        for _ in range(questions):
            question, answer = self.pair()
            turns += [("user", question), ("assistant", answer)]
        return turns


def refuse_held_out(topics: list[dict], held_out: list[dict]) -> int:
    """Ends the program if a held-out question can be trained on; returns how many questions there are."""
    trained = {questions.normal(text) for topic in topics for pattern in topic["questions"]
               for text in questions.expand(questions.parse(pattern))}
    both = [question["text"] for question in held_out if questions.normal(question["text"]) in trained]
    if both:
        sys.exit("these held-out questions are in the training set, change one or the other: " + "; ".join(both))
    return len(trained)


def train_tokenizer(topics: list[dict], held_out: list[dict]) -> Tokenizer:
    data = Data(topics, held_out, SEED + 1)
    text = [content for _ in range(30_000) for content in data.pair()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, START, STOP], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def encode(turns: list[tuple[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids and labels. Only what the assistant says is learned."""
    ids, labels = [], []
    for role, content in turns:
        head = tokenizer.encode(f"{START}{role}\n").ids
        body = tokenizer.encode(f"{content}{STOP}").ids
        tail = tokenizer.encode("\n").ids
        ids += head + body + tail
        learned = body if role == "assistant" else [-100] * len(body)
        labels += [-100] * len(head) + learned + [-100] * len(tail)
    return ids, labels


def batches(data: Data, tokenizer: Tokenizer, size: int):
    """Token ids and labels, [size, longest], without end. Rows of like length share a batch."""
    pad = lambda row, longest, value: row + [value] * (longest - len(row))
    while True:
        rows = []
        for index in range(16 * size):
            rows.append(encode(data.conversation(2 if index % 16 == 0 else 1), tokenizer))
        rows.sort(key=lambda row: len(row[0]))
        cuts = [rows[start:start + size] for start in range(0, len(rows), size)]
        data.rng.shuffle(cuts)
        for cut in cuts:
            longest = len(cut[-1][0])
            yield (torch.tensor([pad(ids, longest, 0) for ids, _ in cut]),
                   torch.tensor([pad(labels, longest, -100) for _, labels in cut]))


def make_model(tokenizer: Tokenizer) -> transformers.Qwen3ForCausalLM:
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=2048,
        rope_theta=10_000.0, tie_word_embeddings=True, use_sliding_window=False, attention_dropout=0.0,
        bos_token_id=None, eos_token_id=tokenizer.token_to_id(STOP), pad_token_id=tokenizer.token_to_id(END))
    return transformers.Qwen3ForCausalLM(config)


def train(model, data: Data, tokenizer: Tokenizer, steps: int, size: int, rate: float) -> float:
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98))
    started, loss_mean = time.monotonic(), 8.0
    for step, (ids, labels) in zip(range(steps), batches(data, tokenizer, size)):
        warm, rest = min(1.0, (step + 1) / 50), max(0.0, (step - 50) / max(1, steps - 50))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * rest)))
        # Padding is on the right and causal attention never looks there, so no mask is needed.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        learned = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][learned])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_mean += (loss.item() - loss_mean) * 0.05
        if step % 25 == 24:
            print(f"step {step + 1}/{steps}  loss {loss_mean:.4f}  {time.monotonic() - started:.0f} s, "
                  f"{time.process_time():.0f} s of processor", flush=True)
    return loss_mean


@torch.no_grad()
def answer(model, tokenizer: Tokenizer, question: str) -> str:
    """Greedy."""
    ids = tokenizer.encode(f"{START}user\n{question}{STOP}\n{START}assistant\n").ids
    prompt, stop = len(ids), tokenizer.token_to_id(STOP)
    while len(ids) < prompt + 100:
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if best == stop:
            break
        ids.append(best)
    return tokenizer.decode(ids[prompt:])


def examine(model, tokenizer: Tokenizer, held_out: list[dict]) -> int:
    right = 0
    for question in held_out:
        text = answer(model, tokenizer, question["text"])
        if all(word in text for word in question["words"]):
            right += 1
        else:
            print(f"WRONG  {question['text']}\n       {text}")
    return right


def save(model, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": STOP, "pad_token": END, "bos_token": None,
              "model_max_length": 2048, "chat_template": CHAT_TEMPLATE}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def provenance(out: Path, here: Path, numbers: dict) -> None:
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    made_of = ["train.py", "questions.py", "topics.toml", "held-out.toml", "requirements.txt"]
    made = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    lines = [
        "# Where the demo model comes from", "",
        "Trained from random weights by `scripts/demo-model/train.py` on the text of",
        "`scripts/demo-model/topics.toml`, which Cocoon's authors wrote. No other model, text or data went in.",
        "Weights, tokenizer and text are under the Apache-2.0 licence, like Cocoon.", "",
        f"- seed {SEED}, " + ", ".join(f"{name} {value}" for name, value in numbers.items()),
        f"- Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"tokenizers {tokenizers.__version__}, {torch.get_num_threads()} thread(s)",
        "", "| Input (scripts/demo-model) | SHA-256 |", "|---|---|",
        *(f"| {name} | `{digest(here / name)}` |" for name in made_of),
        "", "| Result | SHA-256 |", "|---|---|", *(f"| {name} | `{digest(out / name)}` |" for name in made),
    ]
    (out / "PROVENANCE.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parent

    torch.manual_seed(SEED)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    topics, held_out = questions.load(here)
    distinct = refuse_held_out(topics, held_out)
    tokenizer = train_tokenizer(topics, held_out)
    model = make_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(topics)} topics, {distinct} questions, {len(held_out)} held out, {parameters} parameters", flush=True)

    loss = train(model, Data(topics, held_out, SEED), tokenizer, arguments.steps, arguments.batch, arguments.rate)
    save(model, tokenizer, arguments.out)
    # What is examined is what was saved: bf16 weights, f32 arithmetic.
    right = examine(model.to(torch.float32).eval(), tokenizer, held_out)
    print(f"{right} of {len(held_out)} held-out questions answered with the stated words")
    provenance(arguments.out, here, {
        "steps": arguments.steps, "batch": arguments.batch, "peak learning rate": arguments.rate,
        "last loss (mean)": f"{loss:.4f}", "parameters": parameters, "topics": len(topics),
        "distinct training questions": distinct, "held-out questions": len(held_out), "answered right": right})


if __name__ == "__main__":
    main()
