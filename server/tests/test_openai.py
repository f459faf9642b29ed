"""The official `openai` package, unmodified, against our server with the demo model."""

import unittest

import openai
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
        self.assertEqual(chunks[-1].usage, whole.usage)

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


if __name__ == "__main__":
    unittest.main()
