"""The official `openai` package, unmodified, against our server with all-MiniLM-L6-v2."""

import math
import unittest

import openai
from openai import OpenAI

import programs

NAME = "all-minilm-l6-v2"
SENTENCE = "That is a happy person"
# What the model's own page on the hub gives for the sentence above.
SIMILARITIES = {"That is a happy dog": 0.695, "That is a very happy person": 0.943, "Today is a sunny day": 0.257}


class Embeddings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        base_url = cls.enterClassContext(programs.server(programs.minilm().as_uri(), NAME))
        cls.client = OpenAI(base_url=base_url, api_key="none", max_retries=0)

    def vectors(self, texts, **options):
        answer = self.client.embeddings.create(model=NAME, input=texts, **options)
        self.assertEqual([item.index for item in answer.data], list(range(len(answer.data))))
        return [item.embedding for item in answer.data]

    def test_similarities_are_those_that_the_model_is_known_for(self):
        first, *others = self.vectors([SENTENCE, *SIMILARITIES])
        self.assertEqual(len(first), 384)
        self.assertAlmostEqual(math.hypot(*first), 1, places=5)
        for (text, expected), other in zip(SIMILARITIES.items(), others, strict=True):
            similarity = sum(a * b for a, b in zip(first, other, strict=True))
            self.assertAlmostEqual(similarity, expected, delta=0.001, msg=text)

    def test_a_text_alone_has_the_vector_that_it_has_among_others(self):
        others = [text * 20 for text in SIMILARITIES]
        (alone,) = self.vectors(SENTENCE)
        self.assertEqual(self.vectors([*others, SENTENCE])[-1], alone)

    def test_both_encodings_and_fewer_dimensions(self):
        # What the client asks for by itself is base64.
        (coded,) = self.vectors(SENTENCE)
        (plain,) = self.vectors(SENTENCE, encoding_format="float")
        for one, other in zip(coded, plain, strict=True):
            self.assertAlmostEqual(one, other, places=6)
        (short,) = self.vectors(SENTENCE, dimensions=64)
        self.assertEqual(len(short), 64)
        self.assertAlmostEqual(math.hypot(*short), 1, places=5)

    def test_usage_and_errors(self):
        answer = self.client.embeddings.create(model=NAME, input=SENTENCE)
        # [CLS] that is a happy person [SEP]
        self.assertEqual(answer.usage.prompt_tokens, 7)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.embeddings.create(model=NAME, input=["short", "word " * 1000])
        self.assertEqual((caught.exception.code, caught.exception.param), ("context_length_exceeded", "input[1]"))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "Hello"}])
        self.assertEqual(caught.exception.code, "unsupported_task")


if __name__ == "__main__":
    unittest.main()
