"""Time to read a prompt and to write tokens, everybody in the same process and in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from onnxruntime import OrtValue
from transformers import DynamicCache, PreTrainedModel

from fedkron.edge.generation import Adapter, Generator, sampler

Steps = Callable[[], Iterator[object]]
"""Starts to write: each item is a step, the first one reads the prompt."""

Seconds = dict[str, tuple[list[float], list[float]]]
"""By name, a value a round: seconds until the first token, and seconds for each later one."""


def timed(writers: Mapping[str, Steps], rounds: int, done: Callable[[], None]) -> Seconds:
    """Each round in another order, after one that is not counted."""
    seconds: Seconds = {name: ([], []) for name in writers}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(sorted(writers), len(writers)):
            times = [time.perf_counter()]
            times += [time.perf_counter() for _ in writers[name]()]
            if number:
                seconds[name][0].append(times[1] - times[0])
                seconds[name][1].append((times[-1] - times[1]) / (len(times) - 2))
        done()
    return seconds


def graph(generator: Generator, adapter: Adapter, prompt: list[int], count: int) -> Steps:
    """As the runtime does it: the cache stays with ONNX Runtime."""
    choose = sampler(1, temperature=0, top_p=1, seed=0)
    return lambda: generator.tokens([prompt], choose, adapter=adapter, max_new_tokens=count)


def graph_with_numpy_cache(generator: Generator, adapter: Adapter, prompt: list[int], count: int) -> Steps:
    """The cache as numpy arrays, out of the session and in again."""
    form, session = generator.form, generator.session

    def steps() -> Iterator[object]:
        ids, length = np.array([prompt]), len(prompt)
        empty = np.zeros((1, form.key_value_heads, 0, form.head_size), np.float32)
        cache = dict.fromkeys(form.past_names, empty)
        for _ in range(count):
            feeds = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
            logits, *present = session.run(["logits", *form.present_names], feeds | cache | dict(adapter))
            cache = dict(zip(form.past_names, present, strict=True))
            ids, length = logits.argmax(-1)[:, None], length + 1
            yield

    return steps


def graph_with_binding(generator: Generator, adapter: Adapter, prompt: list[int], count: int) -> Steps:
    """Inputs and outputs bound one by one."""
    form, session = generator.form, generator.session

    def steps() -> Iterator[object]:
        ids, length = np.array([prompt]), len(prompt)
        empty = np.zeros((1, form.key_value_heads, 0, form.head_size), np.float32)
        cache: Sequence[OrtValue] = [OrtValue.ortvalue_from_numpy(empty) for _ in form.past_names]
        for _ in range(count):
            binding = session.io_binding()
            tokens = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
            for name, array in (tokens | dict(adapter)).items():
                binding.bind_cpu_input(name, array)
            for name, value in zip(form.past_names, cache, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in ("logits", *form.present_names):
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
            ids, length = logits.numpy().argmax(-1)[:, None], length + 1
            yield

    return steps


def torch_eager(model: PreTrainedModel, prompt: list[int], count: int) -> Steps:
    """torch with its cache, without what `generate` does around it."""

    @torch.inference_mode()
    def steps() -> Iterator[object]:
        ids, cache = torch.tensor([prompt]), DynamicCache()
        for _ in range(count):
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            yield

    return steps
