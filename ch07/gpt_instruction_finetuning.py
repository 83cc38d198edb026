"""Finetune a pretrained GPT to follow instructions (chapter 7).

The book's functions, those of its exercises, and a command line around them: progress,
metrics, checkpoints, `--resume`. Judging the answers is `ollama_evaluate.py`. Run it:
`python -m ch07.gpt_instruction_finetuning` finetunes the mini model on the course's
instructions and writes its answers beside the expected ones.

Letters: B batch, T tokens.
"""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from ch02.cli import Parser, exit_on_input_error, positive_float, positive_int, seed
from ch02.download import retrieve
from ch05.device import ACCELERATORS
from ch07.entries import read_json


def download_and_load_file(file_path, url):
    """Return what a JSON file holds; it is downloaded if it is not there (7.2)."""
    retrieve(url, Path(file_path))
    return read_json(file_path)


def format_input(entry):
    """The prompt of an entry in Alpaca's style, without the response (7.2)."""
    prompt = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    if entry["input"]:
        prompt += f"\n\n### Input:\n{entry['input']}"
    return prompt


def format_input_phi(entry):
    """The prompt of an entry in Phi-3's style, which is shorter (exercise 7.1)."""
    prompt = f"<|user|>\n{entry['instruction']}"
    if entry["input"]:
        prompt += f"\n{entry['input']}"
    return prompt


# What stands between the prompt and the response
RESPONSE = {format_input: "\n\n### Response:\n", format_input_phi: "\n<|assistant|>:\n"}
PROMPT_STYLES = {"alpaca": format_input, "phi3": format_input_phi}


class InstructionDataset(Dataset):
    """Entries as token ids: prompt and response in one list (7.2).

    format_prompt: one of PROMPT_STYLES. Items: a list of ids; with_lengths makes them
    (ids of the prompt alone, list of ids), as masking needs it (exercise 7.2).
    """

    def __init__(self, data, tokenizer, format_prompt=format_input, with_lengths=False):
        self.data = data
        self.encoded_texts, self.prompt_lengths = [], []
        for entry in data:
            prompt = format_prompt(entry)
            text = prompt + RESPONSE[format_prompt] + entry["output"]
            # An entry that quotes <|endoftext|> means these characters
            encoded = tokenizer.encode(text, disallowed_special=())
            prompt_ids = tokenizer.encode(prompt, disallowed_special=())
            self.encoded_texts.append(encoded)
            self.prompt_lengths.append(len(prompt_ids))
        self.with_lengths = with_lengths

    def __getitem__(self, index):
        encoded = self.encoded_texts[index]
        return (self.prompt_lengths[index], encoded) if self.with_lengths else encoded

    def __len__(self):
        return len(self.data)


def custom_collate_fn(
    batch,
    pad_token_id=50256,
    ignore_index=-100,
    allowed_max_length=None,
    device="cpu",
):
    """Lists of ids to (inputs, targets), each int64 of shape (B, T) (section 7.3).

    Every list gets one end token and padding to the longest. Targets lie one token to
    the right; of the padding they keep the first, which ends the text, and the rest
    becomes ignore_index, as does the prompt of an item (prompt length, ids).
    """
    batch = [item if isinstance(item, tuple) else (0, item) for item in batch]
    longest = max(len(ids) + 1 for _, ids in batch)
    inputs, targets = [], []
    for prompt_length, ids in batch:
        padded = ids + [pad_token_id] * (longest - len(ids))
        target = torch.tensor(padded[1:])  # (T,)
        target[len(ids) :] = ignore_index  # behind the first end token
        target[: max(0, prompt_length - 1)] = ignore_index
        inputs.append(torch.tensor(padded[:-1]))  # (T,)
        targets.append(target)
    inputs, targets = torch.stack(inputs), torch.stack(targets)  # (B, T) each
    if allowed_max_length is not None:
        inputs = inputs[:, :allowed_max_length]
        targets = targets[:, :allowed_max_length]
    return inputs.to(device), targets.to(device)


def extract_response(response_text, input_text):
    """What follows the prompt in a generated text, without the response's heading."""
    response = response_text[len(input_text) :]
    for heading in RESPONSE.values():
        response = response.replace(heading.strip(), "")
    return response.strip()


def main(test_mode=False):
    """A run with the defaults of the command line, under the book's signature."""
    cli(["--test-mode"] if test_mode else [])


def parse_args(argv=None):
    """Read the command line."""
    from ch05.gpt_generate import MODELS

    parser = Parser(
        prog="gpt_instruction_finetuning",
        description="Finetune a pretrained GPT to follow instructions.",
    )
    add = parser.add_argument
    add("--data", default="bundled",
        help="bundled, book or alpaca (downloaded), or a JSON file (default: bundled)"
        )  # fmt: skip
    add("--model", choices=MODELS, default="gpt2-mini", help="(default: gpt2-mini)")
    add("--prompt-style", choices=PROMPT_STYLES, default="alpaca",
        help="(default: alpaca)")  # fmt: skip
    add("--mask-instructions", action="store_true",
        help="learn the responses only, not the prompts")  # fmt: skip
    add("--lora", action="store_true", help="train low-rank corrections (appendix E)")
    add("--epochs", type=positive_int, help="(default: 2; 4 of gpt2-mini)")
    add("--batch-size", type=positive_int, default=8, help="(default: 8)")
    add("--max-length", type=positive_int,
        help="tokens of an entry that are used (default: the model's context)"
        )  # fmt: skip
    add("--lr", type=positive_float, help="learning rate of AdamW")
    add("--eval-freq", type=positive_int, default=20, help="steps between evaluations")
    add("--seed", type=seed, default=123, help="of the shuffling and of adapters")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--out-dir", type=Path, help="(default: runs/instructions-MODEL)")
    add("--resume", action="store_true", help="continue the run in --out-dir")
    add("--save-every", type=positive_int, default=100, help="steps per checkpoint")
    add("--test-mode", "--test_mode", action="store_true",
        help="a tiny model and ten entries per part, to try the script")  # fmt: skip
    args = parser.parse_args(argv)
    if args.test_mode:
        args.device = "cpu"
    return args


def cli(argv=None):
    """Command line: finetune, answer the test entries, save both."""
    from ch07.finetuning import finetune

    args = parse_args(argv)
    with exit_on_input_error("gpt_instruction_finetuning"):
        finetune(args)


if __name__ == "__main__":
    cli()
