"""Prometheus' own Python package reads what the server says of itself, in both formats."""

import json
import unittest
import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

import programs

NAME = 'org/chat:"small"'
OPENMETRICS = "application/openmetrics-text"


class Metrics(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        base_url, cls.internal = cls.enterClassContext(programs.server_and_internal("builtin://demo", NAME))
        body = {"model": NAME, "prompt": "What is the capital of France?" * 8, "max_tokens": 8, "ignore_eos": True}
        for _ in range(2):
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{base_url}/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                cls.usage = json.load(answer)["usage"]

    def samples(self, accept):
        request = urllib.request.Request(f"{self.internal}/metrics", headers={"accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            self.assertTrue(answer.headers["content-type"].startswith(accept))
            text = answer.read().decode()
        reader = openmetrics if accept == OPENMETRICS else parser
        families = list(reader.text_string_to_metric_families(text))
        self.assertEqual(len({family.name for family in families}), len(families), "each name is there once")
        found = {}
        for sample in (sample for family in families for sample in family.samples):
            labels = dict(sample.labels)
            labels.pop("le", None)
            found.setdefault((sample.name, labels.get("model_name", labels.get("model"))), []).append((labels, sample.value))
        return {family.name: family.type for family in families}, found

    def test_both_formats_are_read_and_aliases_have_the_values_of_their_own_names(self):
        for accept in (OPENMETRICS, "text/plain"):
            with self.subTest(accept):
                types, found = self.samples(accept)

                def value(name):
                    return found[(name, NAME)][0][1]

                for own, alias in [
                    ("candela_server_requests_queued", "vllm:num_requests_waiting"),
                    ("candela_server_requests_running", "vllm:num_requests_running"),
                    ("candela_server_kv_usage_ratio", "vllm:kv_cache_usage_perc"),
                    ("candela_server_kv_usage_ratio", "vllm:gpu_cache_usage_perc"),
                    ("candela_server_prompt_tokens_total", "vllm:prompt_tokens_total"),
                    ("candela_server_generated_tokens_total", "vllm:generation_tokens_total"),
                    ("candela_server_prefix_query_tokens_total", "vllm:prefix_cache_queries_total"),
                    ("candela_server_prefix_hit_tokens_total", "vllm:prefix_cache_hits_total"),
                    ("candela_server_preemptions_total", "vllm:num_preemptions_total"),
                    ("candela_server_time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_sum"),
                    ("candela_server_inter_token_seconds_count", "vllm:inter_token_latency_seconds_count"),
                    ("candela_server_request_seconds_count", "vllm:e2e_request_latency_seconds_count"),
                    ("candela_server_queue_seconds_count", "vllm:request_queue_time_seconds_count"),
                    ("candela_server_prefill_seconds_sum", "vllm:request_prefill_time_seconds_sum"),
                    ("candela_server_decode_seconds_sum", "vllm:request_decode_time_seconds_sum"),
                ]:
                    self.assertEqual(value(own), value(alias), own)
                self.assertEqual(value("vllm:generation_tokens_total"), 16)
                self.assertEqual(value("vllm:e2e_request_latency_seconds_count"), 2)
                self.assertEqual(types["vllm:kv_cache_usage_perc"], "gauge")
                (labels, success), = found[("vllm:request_success_total", NAME)]
                self.assertEqual((labels["finished_reason"], success), ("length", 2))
                (labels, _), = found[("vllm:cache_config_info", NAME)]
                self.assertGreater(int(labels["block_size"]) * int(labels["num_gpu_blocks"]), 0)

    def test_a_repeated_prompt_was_found_in_the_cache_and_its_phases_are_told(self):
        cached = self.usage["prompt_tokens_details"]["cached_tokens"]
        self.assertGreater(cached, 0)
        _, found = self.samples(OPENMETRICS)
        self.assertEqual(found[("vllm:prefix_cache_hits_total", NAME)][0][1], cached)
        self.assertEqual(set(self.usage["timings"]), {"queue_ms", "prefill_ms", "decode_ms"})


if __name__ == "__main__":
    unittest.main()
