"""The unmodified `openai` client gets from a running fleet what the protocol promises."""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from running_system import ENGINE_ARGS, Deployed, prompts, until

pytestmark = pytest.mark.engine

MODEL = "tiny-llama"
CONTEXT_TOKENS = ENGINE_ARGS["max_model_len"]
TOKENS = 16
TEXT = "Twelve islands, zwölf Inseln, 十二の島 🏝"
QUESTION: list[Any] = [{"role": "user", "content": TEXT}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
SAMPLED = GREEDY | {"temperature": 1}
# A model with random weights puts much white space into JSON (100 to 200 tokens in all); greedily it might never end.
STRUCTURED = {"model": MODEL, "temperature": 1, "seed": 3, "max_tokens": 1500, "extra_body": {}}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class Course(BaseModel):
    """A finite grammar: whatever a model with random weights writes, it ends."""

    model_config = ConfigDict(extra="forbid")

    island: Literal["north", "south", "east"]
    direct: bool
    knots: int = Field(ge=1, le=30)


COURSE_TOOL: Any = openai.pydantic_function_tool(Course, name="set_course")
THE_COURSE_TOOL: Any = {"type": "function", "function": {"name": "set_course"}}


@pytest.fixture
def deployed(deploy: Callable[..., Deployed]) -> Deployed:
    return deploy(MODEL, {"tp2pp2": 1})


@pytest.fixture
def client(deployed: Deployed) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{deployed.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def http(deployed: Deployed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployed.url, timeout=120) as http:
        yield http


def chat(client: OpenAI, **changes: Any) -> Any:
    return client.chat.completions.create(**GREEDY | {"messages": QUESTION} | changes)


def complete(client: OpenAI, **changes: Any) -> Any:
    return client.completions.create(**GREEDY | {"prompt": TEXT} | changes)


def tokens_of(http: httpx.Client, **what: Any) -> list[int]:
    answer = http.post("/tokenize", json={"model": MODEL} | what).raise_for_status().json()
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), CONTEXT_TOKENS)
    return answer["tokens"]


def joined(chunks: Iterable[Any], index: int = 0) -> tuple[str, list[str]]:
    """The text and the finish reasons of one choice of a stream, of chat or of completions."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    texts = [choice.delta.content if hasattr(choice, "delta") else choice.text for choice in choices]
    return "".join(text or "" for text in texts), [one.finish_reason for one in choices if one.finish_reason]


def test_it_says_that_it_is_well_and_what_it_serves(client: OpenAI, http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    (model,) = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == (MODEL, "model", CONTEXT_TOKENS)


def test_a_chat_answer_says_what_it_cost(client: OpenAI, http: httpx.Client) -> None:
    answer = chat(client)
    (choice,) = answer.choices
    assert (answer.model, answer.object) == (MODEL, "chat.completion")
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert choice.message.content
    prompt_tokens = len(tokens_of(http, messages=QUESTION))
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert usage == (prompt_tokens, TOKENS, prompt_tokens + TOKENS)


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_stream_is_the_same_answer_in_pieces(client: OpenAI, ask: Callable[..., Any]) -> None:
    whole = ask(client)
    chunks = list(ask(client, **STREAMED))
    choice = whole.choices[0]
    assert joined(chunks) == (choice.message.content if ask is chat else choice.text, ["length"])
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage for chunk in chunks if chunk.usage] == [chunks[-1].usage]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump()


def test_a_stream_arrives_while_it_is_made(client: OpenAI) -> None:
    arrivals_s = [time.monotonic() for _ in complete(client, max_tokens=100, stream=True)]
    assert arrivals_s[-1] - arrivals_s[0] > 0.1  # 100 steps through two stages; held back, all would come at once


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_ends_with_done(http: httpx.Client, path: str) -> None:
    asked = {"messages": QUESTION} if "chat" in path else {"prompt": TEXT}
    answer = http.post(path, json={"model": MODEL, "max_tokens": TOKENS, "stream": True} | asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = answer.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events)
    assert (done, nothing) == ("data: [DONE]", "")


def test_several_choices_are_told_apart(client: OpenAI) -> None:
    asked = SAMPLED | {"n": 2, "seed": 5}
    whole = chat(client, **asked)
    texts = {choice.index: choice.message.content for choice in whole.choices}
    assert set(texts) == {0, 1}
    assert len(set(texts.values())) == 2
    assert whole.usage.completion_tokens == 2 * TOKENS
    chunks = list(chat(client, **asked, stream=True))
    assert [joined(chunks, index) for index in (0, 1)] == [(texts[0], ["length"]), (texts[1], ["length"])]


def test_a_seed_repeats_a_sampled_answer(client: OpenAI) -> None:
    first, again, other = (complete(client, **SAMPLED, seed=seed).choices[0].text for seed in (11, 11, 12))
    assert first == again != other


def test_log_probabilities_of_a_chat(client: OpenAI) -> None:
    entries = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(entries) == TOKENS
    for entry in entries:
        likeliest = [top.logprob for top in entry.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert entry.logprob == likeliest[0] <= 0  # greedy
        assert entry.token == entry.top_logprobs[0].token


def test_log_probabilities_of_a_prompt(client: OpenAI, http: httpx.Client) -> None:
    prompt = "The islands"
    choice = complete(client, prompt=prompt, echo=True, logprobs=2).choices[0]
    assert choice.text == prompt + complete(client, prompt=prompt).choices[0].text
    first, *others = choice.logprobs.token_logprobs
    assert (first, len(others)) == (None, len(tokens_of(http, prompt=prompt)) - 1 + TOKENS)
    assert max(others) <= 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client: OpenAI, deployed: Deployed, *, streamed: bool) -> None:
    full = complete(client, max_tokens=40).choices[0].text
    stop = re.findall(r"[a-z ]{4,}", full)[-1]
    answer = complete(client, stop=[stop, "never written"], max_tokens=1000, stream=streamed)
    assert joined(answer if streamed else [answer]) == (full.partition(stop)[0], ["stop"])
    # Only the ingress knows of text: had it not told the replica, that would go on for seconds.
    until(lambda: deployed.report().unfinished_requests == 0, "the replica has dropped the rest", timeout_s=5)


def test_token_ids_are_a_prompt_as_their_text_is(client: OpenAI, http: httpx.Client) -> None:
    texts = [TEXT, "Another island"]
    ids = [tokens_of(http, prompt=text) for text in texts]
    batch = complete(client, prompt=ids)
    assert [choice.text for choice in batch.choices] == [complete(client, prompt=t).choices[0].text for t in texts]
    assert [choice.index for choice in batch.choices] == [0, 1]
    assert batch.usage.prompt_tokens == sum(map(len, ids))


def test_text_survives_the_way_to_tokens_and_back(http: httpx.Client) -> None:
    answer = http.post("/detokenize", json={"model": MODEL, "tokens": tokens_of(http, prompt=TEXT)})
    assert (answer.status_code, answer.json()) == (200, {"prompt": TEXT})


def test_answers_keep_to_a_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**STRUCTURED, messages=QUESTION, response_format=Course, n=3)
    assert [type(choice.message.parsed) for choice in answer.choices] == [Course] * 3
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


@pytest.mark.parametrize(
    ("tool_choice", "finish_reason"), [("required", "tool_calls"), (THE_COURSE_TOOL, "stop")], ids=["required", "named"]
)
def test_a_tool_call_has_arguments_of_its_schema(client: OpenAI, tool_choice: Any, finish_reason: str) -> None:
    asked = STRUCTURED | {"tools": [COURSE_TOOL], "tool_choice": tool_choice, "parallel_tool_calls": False}
    choice = chat(client, **asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "set_course")
    assert choice.finish_reason == finish_reason
    course = Course.model_validate_json(call.function.arguments)

    with client.chat.completions.stream(messages=QUESTION, **asked) as events:
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.name == "set_course"
    assert Course.model_validate_json(streamed.function.arguments) == course

    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    next_turn = chat(client, messages=[*QUESTION, choice.message, result], tools=[COURSE_TOOL], tool_choice="none")
    assert next_turn.choices[0].message.content
    assert next_turn.choices[0].message.tool_calls in (None, [])


def test_responses(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": TEXT, "max_output_tokens": TOKENS, "temperature": 0}
    answer = client.responses.create(**asked)
    assert answer.output_text == chat(client, extra_body={}).choices[0].message.content
    assert (answer.status, answer.usage.output_tokens) == ("incomplete", TOKENS)
    deltas = [event.delta for event in client.responses.create(**asked, stream=True) if "text.delta" in event.type]
    assert "".join(deltas) == answer.output_text


def test_anthropic_messages(client: OpenAI, http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
    answer = http.post("/v1/messages", json=body).raise_for_status().json()
    assert [part["text"] for part in answer["content"]] == [chat(client, extra_body={}).choices[0].message.content]
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", TOKENS)
    events = http.post("/v1/messages", json=body | {"stream": True}).raise_for_status().text
    assert events.count("event: message_stop") == 1


def test_concurrent_streams_do_not_mix(client: OpenAI) -> None:
    many = [prompt[start:] for prompt in prompts() for start in (0, 1, 2)][:16]
    alone = [complete(client, prompt=prompt).choices[0].text for prompt in many]
    assert len(set(alone)) == 16

    async def answer(client: AsyncOpenAI, prompt: list[int]) -> list[Any]:
        stream = await client.completions.create(**GREEDY, prompt=prompt, **STREAMED)
        return [chunk async for chunk in stream]

    async def together() -> list[list[Any]]:
        async with AsyncOpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as shared:
            return await asyncio.gather(*(answer(shared, prompt) for prompt in many))

    streams = asyncio.run(together())
    assert [joined(chunks) for chunks in streams] == [(text, ["length"]) for text in alone]
    assert [chunks[-1].usage.prompt_tokens for chunks in streams] == [len(prompt) for prompt in many]
    assert len({chunk.id for chunks in streams for chunk in chunks}) == 16


@pytest.mark.parametrize(
    ("ask", "changes", "says"),
    [
        (complete, {"prompt": [7] * (CONTEXT_TOKENS + 1)}, f"maximum context length is {CONTEXT_TOKENS} tokens"),
        (chat, {"messages": [{"role": "user", "content": "island " * 3000}]}, f"length is {CONTEXT_TOKENS} tokens"),
        (complete, {"prompt": [10**6]}, "1000000 is out of vocabulary"),
        (chat, {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        (complete, {"max_tokens": -1}, "max_tokens must be at least 1, got -1"),
        (chat, {"max_tokens": "many"}, r"body\.max_tokens.*valid integer"),
        (chat, {"temperature": -1}, "temperature must be non-negative"),
        (chat, {"messages": "hello"}, r"body\.messages.*valid list"),
        (chat, {"messages": []}, "at least one message"),
        (chat, {"tools": [COURSE_TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    client: OpenAI, ask: Callable[..., Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        ask(client, **changes)
    with pytest.raises(openai.APIError, match=says):  # some are found when the answer has begun: status 200, then this
        list(ask(client, **changes, stream=True))


@pytest.mark.parametrize("ask", [chat, complete])
def test_an_unknown_model_is_not_found(client: OpenAI, ask: Callable[..., Any]) -> None:
    with pytest.raises(openai.NotFoundError, match=f"`gpt-9` does not exist.*{MODEL}") as refusal:
        ask(client, model="gpt-9")
    assert (refusal.value.type, refusal.value.param) == ("NotFoundError", "model")


@pytest.mark.parametrize("content", [b'{"model": "tiny', b"", b"[]"])
def test_what_is_not_json_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_metrics_count_what_was_generated(client: OpenAI, http: httpx.Client) -> None:
    def counts() -> list[float]:
        lines = http.get("/metrics").raise_for_status().text.splitlines()
        names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
        samples = [[line for line in lines if line.startswith(f"vllm:{name}{{")] for name in names]
        return [sum(float(line.split()[-1]) for line in found) for found in samples]

    before = counts()
    complete(client, prompt=prompts(3))
    grown = (sum(map(len, prompts(3))), 3 * TOKENS, 3)
    expected = [old + new for old, new in zip(before, grown, strict=True)]
    until(lambda: counts() == expected, "counted", timeout_s=5)
