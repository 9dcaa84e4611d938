"""A reasoning parser for made models, which have no tokens of their own for it. vLLM loads it by its path."""

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser


@ReasoningParserManager.register_module("tiny")
class TinyReasoning(BaseThinkingReasoningParser):
    """Reasons until ``<|endoftext|>``, token 0."""

    start_token = "<|im_start|>"
    end_token = "<|endoftext|>"
