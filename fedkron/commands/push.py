"""`fedkron push`: an adapter to a repository on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json

from fedkron.commands.publish import add_source_options, conditions, read_material


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "push",
        help="push an adapter to the Hugging Face Hub, with a model card",
        description="Push the adapter of a run to a repository on the Hugging Face Hub, in one commit: its "
        "files, the signed manifest and a model card. Log in before (hf auth login, or the variable "
        "HF_TOKEN). `fedkron pull hf://USER/REPOSITORY` fetches it.",
    )
    add_source_options(parser)
    parser.add_argument("repository", help="USER/REPOSITORY; it is made if it is new")
    parser.add_argument("--name", help="what it is called (default: as the repository, in lower case)")
    parser.add_argument("--private", action="store_true", help="make the repository, if it is new, private")
    parser.add_argument(
        "--peft",
        action="store_true",
        help="with a PEFT LoRA checkpoint of the same ΔW beside it, which PEFT loads from there",
    )
    parser.add_argument("--json", action="store_true", help="print what was pushed as JSON")
    parser.set_defaults(command=push)


def push(options: argparse.Namespace) -> int:
    """Push, and print where it is."""
    from huggingface_hub import HfApi

    from fedkron.registry.hub import push as push_to
    from fedkron.registry.hub import with_peft
    from fedkron.registry.publish import prepare
    from fedkron.registry.signature import publisher_key

    material = read_material(options)
    if options.peft:
        material = with_peft(material)
    name = options.name or options.repository.rpartition("/")[2].lower()
    key = publisher_key(options.key)
    prepared = prepare(material, key, conditions(options, name))
    pushed = push_to(HfApi(), options.repository, prepared, key, private=options.private)
    made = pushed.signed.publication
    if options.json:
        facts = {
            "name": made.name,
            "release": made.release,
            "sha256": pushed.signed.digest,
            "commit": pushed.commit,
            "public_key": made.public_key,
        }
        print(json.dumps(facts, indent=1))
        return 0
    print(f"Pushed {made.name}@{made.release} to {options.repository}: {pushed.commit}")
    print(f"public key  {made.public_key}")
    return 0
