"""How an adapter runs on a device: a bundle is written with torch once, and runs without it.

    features    torch → ONNX: the bare base as a graph
    graph       graph surgery: fold an adapter in, or insert a slot for it; attach a head
    slot        what a graph's slot holds
    manifest    what a bundle says about itself
    bundle      write a bundle
    check       a bundle against torch
    runtime     run a bundle: numpy, onnxruntime, tokenizers and safetensors are enough

Import from the modules: nothing is re-exported here, because a device has neither torch nor onnx, and
whoever writes a bundle need not have onnxruntime.
"""
