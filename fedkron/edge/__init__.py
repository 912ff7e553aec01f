"""How an adapter runs on a device: a bundle is written with torch once, and runs without it.

Writing (torch, onnx)
    exporter         torch → ONNX, with the name of every linear layer
    features         text and image bases as graphs
    decoder          a language model with its cache as a graph
    graph            how nodes are added to a graph, and how it is stored
    slot_graph       graph surgery: inputs for an adapter, and each layer its adapter beside it
    slot_reading     the first nodes of such a graph: they take the slot apart
    fold             graph surgery: an adapter is folded into the base
    quantize         the base in int8
    bundle           write a bundle of a text or image base
    language_bundle  write a bundle of a language model
    bundle_folder    what both have in common
    onnx_adapter     adapters for ONNX Runtime's own API
    check            a bundle against torch

Both
    manifest         what a bundle says about itself
    slot             what a graph's slot holds
    slot_encoding    in float32, float16, 8 or 4 bits
    heads            heads that go with an adapter
    device_adapter   an adapter as a device holds it, and its file
    language_model   what a device has to know of a language model

Running (numpy, onnxruntime, tokenizers, safetensors; Pillow for images)
    runtime          run a bundle: classify, choose
    language_runtime run a language model's bundle: generate
    generation       the loop that does it
    store            adapters by name, changed while requests run
    adapter_folder   adapters from a folder that somebody fills
    texts, images    inputs for a graph
    session          ONNX Runtime as a device wants it
    service          the HTTP service of `fedkron serve`
    standalone       becomes `run.py` in each bundle; imports nothing of this package

Import from the modules: nothing is re-exported here, because a device has neither torch nor onnx.
"""
