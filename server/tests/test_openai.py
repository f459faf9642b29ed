"""The official `openai` package, unmodified, against our server with the demo model."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import typing
import unittest

import openai
import pydantic
from openai import OpenAI

import programs

NAME = "chat-small"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        base_url = cls.enterClassContext(programs.server("builtin://demo", NAME))
        cls.client = OpenAI(base_url=base_url, api_key="none", max_retries=0)

    def test_a_chat_is_answered_by_the_model(self):
        answer = self.client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=40)
        self.assertIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, NAME)
        usage = answer.usage
        self.assertGreater(usage.completion_tokens, 0)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_a_stream_adds_up_to_the_answer(self):
        ask = {"model": NAME, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 40}
        whole = self.client.chat.completions.create(**ask)
        stream = self.client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask)
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        # Ours, beside OpenAI's fields.
        self.assertGreater(chunks[-1].usage.timings["prefill_ms"], 0)

    def test_an_answer_can_be_sent_back(self):
        first = self.client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=40)
        turns = [*QUESTION, first.choices[0].message, {"role": "user", "content": "And of Italy?"}]
        second = self.client.chat.completions.create(model=NAME, messages=turns, temperature=0, max_tokens=40)
        self.assertGreater(second.usage.prompt_tokens, first.usage.prompt_tokens)

    def test_completions_whole_and_streamed(self):
        ask = {"model": NAME, "prompt": "The capital of", "max_tokens": 6, "temperature": 0, "logprobs": 2}
        whole = self.client.completions.create(**ask)
        self.assertEqual(whole.object, "text_completion")
        # The end-of-text token is counted as output, but it has no text to report on.
        ended = whole.choices[0].finish_reason == "stop"
        self.assertEqual(len(whole.choices[0].logprobs.tokens) + ended, whole.usage.completion_tokens)
        pieces = list(self.client.completions.create(stream=True, **ask))
        self.assertEqual("".join(p.choices[0].text for p in pieces), whole.choices[0].text)

    def test_sampling_is_repeatable_and_logprobs_come_along(self):
        ask = {"model": NAME, "messages": QUESTION, "temperature": 1.5, "seed": 7, "max_tokens": 20}
        one = self.client.chat.completions.create(logprobs=True, top_logprobs=3, **ask)
        two = self.client.chat.completions.create(**ask)
        self.assertEqual(one.choices[0].message.content, two.choices[0].message.content)
        logprobs = one.choices[0].logprobs.content
        self.assertTrue(logprobs)
        for token in logprobs:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)

    def test_a_stop_string_ends_the_answer(self):
        answer = self.client.chat.completions.create(
            model=NAME, messages=QUESTION, temperature=0, max_tokens=40, stop=["Paris"]
        )
        self.assertNotIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_several_answers_come_side_by_side(self):
        ask = {"model": NAME, "messages": QUESTION, "temperature": 1.2, "seed": 3, "max_tokens": 12, "n": 3}
        whole = self.client.chat.completions.create(**ask)
        self.assertEqual([choice.index for choice in whole.choices], [0, 1, 2])
        one = self.client.chat.completions.create(**{**ask, "n": 1})
        self.assertEqual(whole.choices[0].message.content, one.choices[0].message.content)
        self.assertEqual(whole.usage.prompt_tokens, one.usage.prompt_tokens)
        texts = {0: "", 1: "", 2: ""}
        for chunk in self.client.chat.completions.create(stream=True, **ask):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(list(texts.values()), [choice.message.content for choice in whole.choices])

    def test_answers_are_parsed_into_a_type(self):
        class Capital(pydantic.BaseModel):
            country: typing.Literal["France", "Italy"]
            population: typing.Annotated[int, pydantic.Field(ge=0, le=9999)]
            sights: typing.Annotated[list[typing.Literal["tower", "bridge"]], pydantic.Field(max_length=2)]

        answer = self.client.chat.completions.parse(
            model=NAME, messages=QUESTION, response_format=Capital, temperature=0, max_tokens=200
        )
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertIsInstance(answer.choices[0].message.parsed, Capital)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(
                model=NAME,
                messages=QUESTION,
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "sting"}}},
            )
        self.assertEqual(caught.exception.param, "response_format.json_schema.schema")

    def test_responses_whole_and_streamed(self):
        ask = {"model": NAME, "input": QUESTION, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 40}
        whole = self.client.responses.create(store=False, **ask)
        self.assertEqual((whole.status, whole.output[0].status), ("completed", "completed"))
        self.assertIn("Paris", whole.output_text)
        self.assertEqual(whole.usage.total_tokens, whole.usage.input_tokens + whole.usage.output_tokens)
        with self.client.responses.stream(**ask) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        self.assertEqual(kinds[0], "response.created")
        self.assertEqual(kinds[-1], "response.completed")
        self.assertEqual(final.output_text, whole.output_text)
        cut = self.client.responses.create(**{**ask, "max_output_tokens": 2})
        self.assertEqual((cut.status, cut.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        # What was answered can be sent back.
        again = self.client.responses.create(
            model=NAME, input=[*QUESTION, *whole.output, {"role": "user", "content": "And of Italy?"}], max_output_tokens=5
        )
        self.assertGreater(again.usage.input_tokens, whole.usage.input_tokens)
        for refused in [{"store": True}, {"previous_response_id": "resp_1"}]:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.client.responses.create(**ask, **refused)
            self.assertEqual(caught.exception.param, next(iter(refused)))

    def test_responses_are_parsed_into_a_type(self):
        class Colour(pydantic.BaseModel):
            name: typing.Literal["red", "green"]

        answer = self.client.responses.parse(model=NAME, input="A colour?", text_format=Colour, max_output_tokens=90)
        self.assertIn(answer.output_parsed.name, ["red", "green"])

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], [NAME])
        self.assertEqual(self.client.models.retrieve(NAME).owned_by, "candela")

    def test_errors_are_the_classes_that_programs_catch(self):
        create = self.client.chat.completions.create
        with self.assertRaises(openai.NotFoundError) as caught:
            create(model="gpt-x", messages=QUESTION)
        self.assertEqual(caught.exception.code, "model_not_found")
        self.assertIn(NAME, str(caught.exception))
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=NAME, messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertEqual(caught.exception.param, "tools")
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=NAME, messages=[{"role": "user", "content": "word " * 10_000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        # More bytes than any text that fits has: not even read.
        with self.assertRaises(openai.APIStatusError) as caught:
            create(model=NAME, messages=[{"role": "user", "content": "word " * 40_000}])
        self.assertEqual((caught.exception.status_code, caught.exception.code), (413, "request_too_large"))
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=NAME, messages=QUESTION, extra_body={"colour": "red"})
        self.assertEqual(caught.exception.code, "unknown_parameter")

    def test_headers_name_the_model_and_its_revision(self):
        raw = self.client.chat.completions.with_raw_response.create(model=NAME, messages=QUESTION, max_tokens=1)
        self.assertEqual(raw.headers["x-candela-model"], NAME)
        self.assertTrue(raw.headers["x-candela-revision"].startswith("sha256:"))
        self.assertTrue(raw.headers["x-request-id"])


# As Qwen 2.5 and Hermes write them, in short.
TOOL_TEMPLATE = """{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Tools(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        repo = folder / "repos" / "org" / "tools"
        shutil.copytree(programs.ROOT / "server" / "models" / "demo", repo)
        config = json.loads((repo / "tokenizer_config.json").read_text())
        (repo / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TOOL_TEMPLATE}))
        endpoint = cls.enterClassContext(programs.hub(folder / "repos"))
        (folder / "server.json").write_text(json.dumps(programs.configuration("hf://org/tools", NAME)))
        fetch = [programs.RELEASE / "candela-server", "fetch", "--config", folder / "server.json", "--to", folder / "m"]
        fetch += ["--internal-listen", "127.0.0.1:0", "--termination-log", folder / "why"]
        subprocess.run(fetch, check=True, env={**os.environ, "HF_ENDPOINT": endpoint}, timeout=60)
        base_url = cls.enterClassContext(programs.server("hf://org/tools", NAME, "--models-dir", folder / "m"))
        cls.client = OpenAI(base_url=base_url, api_key="none", max_retries=0)

    def check(self, call):
        self.assertEqual((call.type, call.function.name), ("function", "weather"))
        arguments = json.loads(call.function.arguments)
        self.assertIn(arguments["city"], ["Paris", "Rome"])
        self.assertIn(arguments["days"], range(1, 10))

    def test_calls_that_must_come_are_valid_and_their_answers_go_back(self):
        ask = {"model": NAME, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
        first = self.client.chat.completions.create(messages=QUESTION, temperature=0, max_tokens=100, **ask)
        choice = first.choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
        (call,) = choice.message.tool_calls
        self.check(call)
        said = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        turns = [*QUESTION, choice.message, said]
        second = self.client.chat.completions.create(model=NAME, tools=[WEATHER], messages=turns, max_tokens=5)
        self.assertGreater(second.usage.prompt_tokens, first.usage.prompt_tokens)

    def test_a_named_call_in_a_stream(self):
        named = {"type": "function", "function": {"name": "weather"}}
        with self.client.chat.completions.stream(
            model=NAME, messages=QUESTION, tools=[WEATHER], tool_choice=named, temperature=1, seed=1, max_tokens=100
        ) as stream:
            for _ in stream:
                pass
            (call,) = stream.get_final_completion().choices[0].message.tool_calls
        self.check(call)

    def test_calls_in_responses(self):
        tool = {"type": "function", **WEATHER["function"], "strict": True}
        ask = {"model": NAME, "tools": [tool], "tool_choice": {"type": "function", "name": "weather"}}
        first = self.client.responses.create(input=QUESTION, temperature=0, max_output_tokens=100, **ask)
        (call,) = first.output
        self.assertEqual((call.type, call.name), ("function_call", "weather"))
        self.assertIn(json.loads(call.arguments)["city"], ["Paris", "Rome"])
        with self.client.responses.stream(input=QUESTION, temperature=0, max_output_tokens=100, **ask) as stream:
            kinds = [event.type for event in stream]
            self.assertEqual(stream.get_final_response().output[0].arguments, call.arguments)
        self.assertIn("response.function_call_arguments.done", kinds)
        said = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = self.client.responses.create(model=NAME, input=[*QUESTION, call, said], max_output_tokens=5)
        self.assertGreater(second.usage.input_tokens, 0)

    def test_without_a_need_for_a_call_the_answer_is_text(self):
        answer = self.client.chat.completions.create(model=NAME, messages=QUESTION, tools=[WEATHER], max_tokens=10)
        self.assertTrue(answer.choices[0].message.content)
        self.assertIsNone(answer.choices[0].message.tool_calls)


if __name__ == "__main__":
    unittest.main()
