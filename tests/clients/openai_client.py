"""Drives the gateway's HTTP API with the official OpenAI client for Python, unmodified.

Usage: openai_client.py BASE_URL KEY      (BASE_URL such as http://127.0.0.1:8642/v1)

The model `echo` answers with exactly the last user message, so every answer is
known beforehand and is compared as a whole. The first failure ends the run.
"""

import asyncio
import sys
import traceback
import uuid

import openai
from openai import AsyncOpenAI, OpenAI

if len(sys.argv) != 3:
    sys.exit("usage: openai_client.py BASE_URL KEY")
BASE_URL, KEY = sys.argv[1:]
# No retries: a request which works only the second time is a failure.
SETTINGS = {"base_url": BASE_URL, "max_retries": 0, "timeout": 30}
client = OpenAI(api_key=KEY, **SETTINGS)

# What breaks careless streaming: double spaces, newlines, quotes, letters of two to
# four bytes, U+2028 (some take it for a line end), and the stream's own end mark.
TRICKY = 'Grüße  aus\nKöln: "a\\b"\t🦀 日本語 x\u2028y data: [DONE]\n\n# Ende &amp; <b>'
LONG = " ".join(f"word{n}" for n in range(300))
SESSION = "X-Hermes-Session-Id"

CASES = []


def case(function):
    CASES.append(function)
    return function


def equal(got, want, what):
    # Not `assert`: python -O would drop it, and it does not show the values.
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")


def check(true, what):
    if not true:
        raise AssertionError(what)


def strict(thing):
    """Checks an object against the client's own types, and returns it.

    The client itself never validates: a missing field only shows when somebody
    reads it. So send what arrived (and no default) through its models strictly.
    """
    type(thing).model_validate_json(thing.to_json(warnings=False), strict=True)
    return thing


def raises(kind, status, call, code=None):
    """Checks that `call` fails with this very class, and with OpenAI's error body."""
    try:
        call()
    except openai.APIStatusError as error:
        equal(type(error), kind, "error class")
        equal(error.status_code, status, "status")
        check(isinstance(error.body, dict), f"no error object in the body: {error.body!r}")
        for field in ("message", "type"):
            value = error.body.get(field)
            check(isinstance(value, str) and value, f"error.{field} is {value!r}")
        if code is not None:
            equal(error.code, code, "error.code")
        return
    raise AssertionError(f"no error, want {kind.__name__}")


def user(content):
    return {"role": "user", "content": content}


def chat(text, c=client, **more):
    return c.chat.completions.create(**{"model": "echo", "messages": [user(text)], **more})


def check_completion(answer, text):
    strict(answer)
    equal(len(answer.choices), 1, "choices")
    choice = answer.choices[0]
    equal((choice.index, choice.finish_reason), (0, "stop"), "index and finish_reason")
    equal((choice.message.role, choice.message.content), ("assistant", text), "message")
    check_chat_usage(answer.usage)


def check_chat_usage(usage):
    check(usage is not None, "no usage")
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")


def check_chunks(chunks, text, with_usage=False):
    for chunk in chunks:
        strict(chunk)
        equal(
            (chunk.id, chunk.created, chunk.model),
            (chunks[0].id, chunks[0].created, chunks[0].model),
            "id, created and model of each chunk",
        )
    if with_usage:
        # OpenAI sends it in a chunk of its own, after the last one with a choice.
        *chunks, last = chunks
        equal(last.choices, [], "choices of the usage chunk")
        check_chat_usage(last.usage)
    check(all(chunk.usage is None for chunk in chunks), "usage in a chunk with text")
    check(all(len(chunk.choices) == 1 for chunk in chunks), "a chunk without its choice")
    choices = [chunk.choices[0] for chunk in chunks]
    equal(choices[0].delta.role, "assistant", "role in the first chunk")
    parts = [choice.delta.content for choice in choices if choice.delta.content]
    equal("".join(parts), text, "text of all chunks")
    check(len(parts) > 1, "the text came in one piece")
    reasons = [choice.finish_reason for choice in choices]
    equal(reasons, [None] * (len(reasons) - 1) + ["stop"], "finish_reason of each chunk")


def check_response(answer, text):
    strict(answer)
    equal(answer.status, "completed", "status")
    equal(answer.error, None, "error")
    equal(answer.output_text, text, "output_text")
    check(answer.usage is not None, "no usage")
    usage = answer.usage
    equal(usage.total_tokens, usage.input_tokens + usage.output_tokens, "total_tokens")


# ---- models


@case
def models_list():
    models = [strict(model) for model in client.models.list()]
    ids = [model.id for model in models]
    equal(len(ids), len(set(ids)), "ids without a double")
    check({"echo", "hermes-agent"} <= set(ids), f"models: {ids}")


@case
def models_retrieve():
    equal(strict(client.models.retrieve("hermes-agent")).id, "hermes-agent", "id")
    raises(openai.NotFoundError, 404, lambda: client.models.retrieve("no-such"), "model_not_found")


# ---- chat completions


@case
def chat_plain():
    answer = chat(TRICKY)
    check_completion(answer, TRICKY)
    equal(answer.model, "echo", "model")


@case
def chat_default_model():
    check_completion(chat("hello default agent", model="hermes-agent"), "hello default agent")


@case
def chat_history_of_the_client():
    messages = [
        {"role": "system", "content": "Be brief."},
        user("the first question"),
        {"role": "assistant", "content": "the first answer"},
        user("the second question"),
    ]
    check_completion(chat("", messages=messages), "the second question")


@case
def chat_content_parts():
    # The client's other way to write a text message.
    check_completion(chat([{"type": "text", "text": "said in a part"}]), "said in a part")


@case
def chat_stream():
    check_chunks(list(chat(TRICKY, stream=True)), TRICKY)


@case
def chat_stream_with_usage():
    chunks = list(chat(LONG, stream=True, stream_options={"include_usage": True}))
    check_chunks(chunks, LONG, with_usage=True)


@case
def chat_stream_helper():
    with client.chat.completions.stream(model="echo", messages=[user(TRICKY)]) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    equal("".join(deltas), TRICKY, "text of all deltas")
    equal(final.choices[0].message.content, TRICKY, "final text")
    equal(final.choices[0].finish_reason, "stop", "finish_reason")


@case
def chat_left_stream():
    # A client which goes away in the middle must not harm the next request.
    stream = chat(LONG, stream=True)
    next(iter(stream))
    stream.close()
    check_completion(chat("still there"), "still there")


# ---- sessions and idempotency


@case
def session_of_several_turns():
    headers = {SESSION: f"py-{uuid.uuid4()}"}
    ids = set()
    for turn in ("turn one", "turn two", "turn three"):
        # Only the new message is sent: the server keeps the history.
        raw = chat(turn, client.with_raw_response, extra_headers=headers)
        equal(raw.headers.get(SESSION), headers[SESSION], "session header")
        answer = raw.parse()
        check_completion(answer, turn)
        ids.add(answer.id)
    equal(len(ids), 3, "different completion ids")
    raw = chat("turn four, streamed", client.with_raw_response, stream=True, extra_headers=headers)
    equal(raw.headers.get(SESSION), headers[SESSION], "session header of the stream")
    check_chunks(list(raw.parse()), "turn four, streamed")


@case
def idempotency():
    headers = {"Idempotency-Key": f"py-{uuid.uuid4()}"}
    first = chat("only once", extra_headers=headers)
    check_completion(first, "only once")
    equal(chat("only once", extra_headers=headers).to_dict(), first.to_dict(), "repeated answer")
    other_body = lambda: chat("other body", extra_headers=headers)
    raises(openai.UnprocessableEntityError, 422, other_body)
    # The refused body must not have replaced what is stored under the key.
    equal(chat("only once", extra_headers=headers).id, first.id, "id after the refusal")
    other = chat("only once", extra_headers={"Idempotency-Key": f"py-{uuid.uuid4()}"})
    check(other.id != first.id, "another key gave the same completion")


# ---- responses


@case
def responses_plain():
    answer = client.responses.create(model="echo", input=TRICKY, instructions="Be brief.")
    check_response(answer, TRICKY)
    equal((answer.model, answer.instructions), ("echo", "Be brief."), "model and instructions")


@case
def responses_input_list():
    messages = [
        user("the first question"),
        {"role": "assistant", "content": "the first answer"},
        {"role": "user", "content": [{"type": "input_text", "text": "the second question"}]},
    ]
    answer = client.responses.create(model="echo", input=messages)
    check_response(answer, "the second question")


@case
def responses_chain():
    last = None
    for turn in ("link one", "link two", "link three"):
        answer = client.responses.create(
            model="echo", input=turn, previous_response_id=last or openai.omit
        )
        check_response(answer, turn)
        equal(answer.previous_response_id, last, "previous_response_id")
        last = answer.id


@case
def responses_retrieve():
    made = client.responses.create(model="echo", input="keep this")
    equal(client.responses.retrieve(made.id).to_dict(), made.to_dict(), "stored response")
    raises(openai.NotFoundError, 404, lambda: client.responses.retrieve("resp_no_such"))


@case
def responses_stream():
    events = list(client.responses.create(model="echo", input=TRICKY, stream=True))
    for event in events:
        strict(event)
    equal([e.sequence_number for e in events], list(range(len(events))), "sequence numbers")

    deltas = [e for e in events if e.type == "response.output_text.delta"]
    check(len(deltas) > 1, "the text came in one piece")
    order = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    equal([e.type for e in events], order, "order of the events")
    equal("".join(e.delta for e in deltas), TRICKY, "text of all deltas")

    created, in_progress, item_added, part_added, *_ = events
    text_done, part_done, item_done, completed = events[-4:]
    for early in (created, in_progress):
        equal((early.response.status, early.response.output), ("in_progress", []), early.type)
        equal(early.response.id, completed.response.id, f"response id in {early.type}")
    equal((item_added.item.type, item_added.item.content), ("message", []), "new item")
    equal(part_added.part.text, "", "text of the new part")
    equal(text_done.text, TRICKY, "text in output_text.done")
    equal(part_done.part.text, TRICKY, "text in content_part.done")
    equal(item_done.item.content[0].text, TRICKY, "text in output_item.done")
    check_response(completed.response, TRICKY)
    # All events speak of the one item which the finished response holds.
    item = completed.response.output[0].id
    for event in (part_added, *deltas, text_done, part_done):
        place = (event.item_id, event.output_index, event.content_index)
        equal(place, (item, 0, 0), f"place in {event.type}")
    for event in (item_added, item_done):
        equal((event.item.id, event.output_index), (item, 0), f"place in {event.type}")
    stored = client.responses.retrieve(completed.response.id)
    equal(stored.to_dict(), completed.response.to_dict(), "stored response")


@case
def responses_stream_helper():
    with client.responses.stream(model="echo", input=LONG) as stream:
        snapshot = ""
        for event in stream:
            if event.type == "response.output_text.delta":
                snapshot += event.delta
                equal(event.snapshot, snapshot, "snapshot")
        final = stream.get_final_response()
    equal((snapshot, final.output_text), (LONG, LONG), "final text")


@case
def responses_stream_resumed():
    whole = list(client.responses.create(model="echo", input=TRICKY, stream=True))
    made = whole[0].response.id
    equal([e.to_dict() for e in client.responses.retrieve(made, stream=True)], [e.to_dict() for e in whole], "again")
    for event in whole:
        after = event.sequence_number
        rest = list(client.responses.retrieve(made, stream=True, starting_after=after))
        equal([e.to_dict() for e in rest], [e.to_dict() for e in whole[after + 1 :]], f"after {after}")
        # The helper has the whole stream sent again, and passes over what came before by its number.
        with client.responses.stream(response_id=made, starting_after=after) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            final = stream.get_final_response()
        equal(deltas, [e.delta for e in rest if e.type == "response.output_text.delta"], f"deltas after {after}")
        equal(final.output_text, TRICKY, "final text")


# ---- errors


@case
def wrong_key():
    for key in ("wrong-" + KEY, KEY + "x", KEY[:-1] or "x"):
        stranger = OpenAI(api_key=key, **SETTINGS)
        raises(openai.AuthenticationError, 401, lambda: stranger.models.list())
        raises(openai.AuthenticationError, 401, lambda: chat("hello", stranger))
        # Before the stream starts: a status code, not an event in the stream.
        raises(openai.AuthenticationError, 401, lambda: chat("hello", stranger, stream=True))


@case
def unknown_model():
    for stream in (False, True):
        for call in (
            lambda: chat("hello", model="no-such", stream=stream),
            lambda: client.responses.create(model="no-such", input="hello", stream=stream),
        ):
            raises(openai.NotFoundError, 404, call, "model_not_found")


@case
def malformed_messages():
    # extra_body replaces what the client would have sent.
    no_role = {"content": "no role"}
    bad_role = {"role": "wizard", "content": "x"}
    for messages in ([], "hello", None, ["hello"], [no_role], [bad_role]):
        for stream in (False, True):
            body = {"messages": messages}
            call = lambda: chat("", stream=stream, extra_body=body)
            raises(openai.BadRequestError, 400, call)


# ---- the async client


@case
def async_16_streams():
    async def one(c, n):
        text = f"stream {n}: " + " ".join(f"{n}-{i}" for i in range(50))
        stream = await chat(text, c, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        check_chunks(chunks, text, with_usage=True)
        return chunks[0].id

    async def run():
        async with AsyncOpenAI(api_key=KEY, **SETTINGS) as c:
            return await asyncio.gather(*(one(c, n) for n in range(16)))

    equal(len(set(asyncio.run(run()))), 16, "different completion ids")


for passed, function in enumerate(CASES):
    try:
        function()
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED {function.__name__}: {type(error).__name__}: {error}", flush=True)
        print(f"{passed} passed, 1 failed", flush=True)
        sys.exit(1)
    print(f"ok {function.__name__}", flush=True)
print(f"{len(CASES)} passed, 0 failed")
