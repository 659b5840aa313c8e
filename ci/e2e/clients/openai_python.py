"""The official openai package through `cocoon proxy`, as anybody would write it.

usage: openai_python.py BASE_URL MODEL; ends with 0 and one line per claim, or with an assertion that names it.
"""

import asyncio
import sys

import openai

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120)
messages = [{"role": "user", "content": "What is Cocoon?"}]


def claim(what, holds):
    assert holds, what
    print("ok:", what)


claim("models are listed", model in [entry.id for entry in client.models.list()])
claim("a model is retrieved", client.models.retrieve(model).id == model)

whole = client.chat.completions.create(model=model, messages=messages, max_tokens=32, temperature=0)
answer = whole.choices[0].message.content
claim("an answer has text", len(answer) > 0)
claim("an answer has a reason to end", whole.choices[0].finish_reason in ("stop", "length"))
claim("tokens are counted", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)

# As people write it: the first choice of every chunk.
streamed = ""
chunks = 0
for chunk in client.chat.completions.create(
    model=model, messages=messages, max_tokens=32, temperature=0, stream=True
):
    streamed += chunk.choices[0].delta.content or ""
    chunks += 1
claim("a stream has the same text", streamed == answer)
claim("a stream comes in pieces", chunks > 3)

usage = None
for chunk in client.chat.completions.create(
    model=model, messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
):
    usage = chunk.usage or usage
claim("a stream tells its usage when asked", usage is not None and 1 <= usage.completion_tokens <= 8)


def refused(error, **arguments):
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **arguments})
    except error as refusal:
        return bool(refusal.message)
    return False


claim("another model is NotFoundError", refused(openai.NotFoundError, model="gpt-9"))
claim("a bad top_p is BadRequestError", refused(openai.BadRequestError, top_p=7))
claim("what is not supported is BadRequestError", refused(openai.BadRequestError, logprobs=True))


async def ask_at_once():
    many = openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=120)
    ask = lambda: many.chat.completions.create(model=model, messages=messages, max_tokens=4)
    return await asyncio.gather(*[ask() for _ in range(4)])


claim("four at once are answered", len({reply.id for reply in asyncio.run(ask_at_once())}) == 4)
