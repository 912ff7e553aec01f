"""Adapters passed on: published with a signed manifest in any storage, listed, verified, pulled.

What is said about an adapter
    publication   the manifest
    strict        JSON into dataclasses, and nothing else
    signature     who signed it
    trust         whose signatures are believed
    card          the same for people: README.md in the form of the Hub

Where it lies
    storage       bytes in any place that fsspec reaches
    store         releases of adapters in such a place

What is done
    material      what a run folder or an adapter file has to publish
    publish       blobs, then the manifest
    listing       what a store has
    fetch         files to a place of their own, checked
    pull          to a folder, into a bundle, to a running service
    hub           to a repository on the Hugging Face Hub

Import from the modules: a device that pulls has neither torch nor flwr.
"""
