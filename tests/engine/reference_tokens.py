"""Greedy tokens of a model from one plain vLLM process: what every shape must reproduce.

Run by conftest.py: reference_tokens.py ANSWERS < REQUEST.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    request = json.load(sys.stdin)
    engine = LLM(model=request["model"], **request["engine_args"])
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    sampling = SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True, logprobs=0)
    answers = []
    for output in engine.generate(prompts, sampling, use_tqdm=False):
        completion = output.outputs[0]
        logprobs = [step[i].logprob for i, step in zip(completion.token_ids, completion.logprobs, strict=True)]
        answers.append({"token_ids": list(completion.token_ids), "logprobs": logprobs})
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
