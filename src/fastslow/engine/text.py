"""Chat text to tokens and back: the half of an engine that needs no weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from jinja2 import TemplateError

from fastslow.config import SamplingConfig
from fastslow.engine.base import Thinking
from fastslow.engine.loading import first_line
from fastslow.errors import ConfigError, ModelError

MARK = "<the response stands here>"


class ChatText:
    """A tokenizer with its chat template and the tokens that end a response.

    `name` is what an error calls the model; `thinking` switches a template's thinking on or off, None
    leaves it as it is. Raises ModelError where the template cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[int],
        name: str,
        thinking: Literal["on", "off"] | None = None,
    ) -> None:
        self.tokenizer, self.stops = tokenizer, list(stops)
        self.switches = {} if thinking is None else {"enable_thinking": thinking == "on"}
        try:
            self.render("Be brief.", "Hello.")
        except TemplateError as error:
            raise ModelError(f"{name}: its chat template fails ({first_line(error)})") from None

    def render(self, system: str, user: str) -> list[int]:
        """The chat prompt, ready for a response."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        if not system:
            del messages[0]
        try:
            text = self._template(messages)
        except TemplateError:  # a template without a system role: the prompt leads the question
            text = self._template([{"role": "user", "content": f"{system}\n\n{user}"}])
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def render_reply(self, text: str) -> list[int]:
        """What follows a response's stop token when its environment replies."""
        # Cut out of a conversation with a known response: templates may rewrite earlier turns, and the
        # tokens sampled so far must stay as they are.
        roles = (("user", "-"), ("assistant", MARK), ("user", text))
        rendered = self._template([{"role": role, "content": words} for role, words in roles])
        ids = self.tokenizer(rendered.partition(MARK)[2], add_special_tokens=False).input_ids
        return ids[1:] if ids and ids[0] in self.stops else ids

    def decode(self, tokens: Sequence[int]) -> str:
        """A response's text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _template(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.switches
        )


def stop_tokens(
    tokenizer: Any, ends: int | Iterable[int | None] | None, words: Sequence[str]
) -> list[int]:
    """The tokens that end a response: `ends`, as a generation configuration has them, and `words`.

    A configuration that names one token or none leaves the tokenizer's own end-of-sequence in force.
    """
    if ends is None or isinstance(ends, int):
        ends = [ends, tokenizer.eos_token_id]
    stops = {token for token in ends if token is not None}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ConfigError(
                f"sampling.stop: {word!r} is {len(ids)} tokens of this model; each entry must be one"
            )
        stops.add(ids[0])
    return sorted(stops)


def thinking_limit(tokenizer: Any, sampling: SamplingConfig) -> Thinking | None:
    """How long a response may think and what then ends it; None: nothing does."""
    if sampling.thinking_tokens is None:
        return None
    close = tokenizer(sampling.thinking_end, add_special_tokens=False).input_ids
    if sampling.thinking_tokens + len(close) >= sampling.max_tokens:
        raise ConfigError(
            f"sampling.thinking_tokens = {sampling.thinking_tokens}: with the {len(close)} tokens of "
            "sampling.thinking_end it leaves no answer within sampling.max_tokens = "
            f"{sampling.max_tokens}"
        )
    return Thinking(sampling.thinking_tokens, close)
