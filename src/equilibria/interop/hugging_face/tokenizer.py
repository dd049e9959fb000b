"""Our tokenizers as those of transformers: the same ids for the same text, and the same text for the same ids.

`eos` is declared as transformers' token for the beginning, the end and padding, so decoding with
`skip_special_tokens=True`, which is not the default, leaves newlines out.
"""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from equilibria.data import Tokenizer
from equilibria.data.tokenizers import END


def stock_tokenizer(tokenizer: Tokenizer, window: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that `AutoTokenizer` loads without our package.

    Args:
        tokenizer: any of ours.
        window: tokens that a prompt is truncated to, from the left, where truncation is asked for; None for no limit.
    """
    word = AddedToken(END, single_word=True, normalized=True, special=True)
    end = tokenizer.stock.get_added_tokens_decoder().get(tokenizer.eos, word)
    limit = {} if window is None else {"model_max_length": window}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.stock,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        **limit,
    )
