"""`fedkron publish`: pass an adapter on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkron.registry.material import Material
    from fedkron.registry.publication import Parent
    from fedkron.registry.publish import Conditions
    from fedkron.registry.storage import Storage


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "publish",
        help="publish an adapter in a store: a folder, S3, …",
        description="Publish the adapter of a run as the next release of NAME: with a signed manifest, a "
        "model card, and what the run says about it. What was published is never "
        "changed. fedkron pull fetches it.",
    )
    add_source_options(parser)
    parser.add_argument(
        "store", help="a folder, or a URL: s3://bucket/path, gs://…, hf://…; it is made if it is new"
    )
    parser.add_argument("--name", required=True, help="what others ask for: a-z, 0-9, '.', '_', '-'")
    parser.add_argument(
        "--parent",
        action="append",
        default=[],
        metavar="NAME@RELEASE",
        help="a publication in this store that it was made from; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print what was published as JSON")
    parser.set_defaults(command=publish)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """The options on what is published, for `publish` and `push`."""
    parser.add_argument("source", type=Path, help="run folder, or an adapter file")
    parser.add_argument(
        "--license",
        required=True,
        metavar="SPDX",
        help="licence of the adapter: Apache-2.0, CC-BY-4.0, …, or LicenseRef-NAME",
    )
    parser.add_argument("--base-license", metavar="SPDX", help="licence of the base, if you know it")
    parser.add_argument("--group", help="the task, cluster or size whose adapter is meant")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        help="a task that it is for; may be repeated (default: those of the run, and of the heads)",
    )
    parser.add_argument(
        "--head",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="publish this head, too; may be repeated. By default none is: a head belongs to the node that "
        "trained it, and may tell about its data",
    )
    parser.add_argument(
        "--for",
        type=Path,
        action="append",
        default=[],
        dest="bundles",
        metavar="BUNDLE",
        help="also publish it as encoded for the slot of this bundle, which is all that its devices fetch; "
        "may be repeated",
    )
    parser.add_argument("--base", metavar="ID", help="how others know the base, where the run had a path")
    parser.add_argument(
        "--key",
        type=Path,
        metavar="KEY.pem",
        help="private key to sign with, made if missing (default: $FEDKRON_PUBLISHER_KEY, or "
        "~/.config/fedkron/publisher-key.pem)",
    )


def publish(options: argparse.Namespace) -> int:
    """Publish, and print what it is called now."""
    from fedkron.registry.publish import prepare
    from fedkron.registry.publish import publish as publish_to
    from fedkron.registry.signature import publisher_key
    from fedkron.registry.storage import open_storage

    storage = open_storage(options.store)
    material = read_material(options, [_parent(storage, text) for text in options.parent])
    key = publisher_key(options.key)
    prepared = prepare(material, key, conditions(options, options.name))
    signed = publish_to(storage, prepared, key)
    made = signed.publication
    if options.json:
        facts = {
            "name": made.name,
            "release": made.release,
            "sha256": signed.digest,
            "bytes": made.size,
            "files": {file.path: file.size for file in made.files},
            "public_key": made.public_key,
        }
        print(json.dumps(facts, indent=1))
        return 0
    print(
        f"Published {made.name}@{made.release} in {storage.url}: {len(made.files)} files, {made.size} bytes"
    )
    print(f"manifest    {signed.digest}")
    print(f"public key  {made.public_key}  (give it to those who pull, another way than this one)")
    if not made.of_role("head") and not material.adapter.layout.has_head:
        print("No head is published: whoever pulls it needs one of their own for each task (see --head).")
    return 0


def read_material(options: argparse.Namespace, parents: Sequence[Parent] = ()) -> Material:
    """What is published, as the options say."""
    from fedkron.registry.material import Choice, material

    choice = Choice(options.group, options.head, options.task, options.base, parents, options.bundles)
    return material(options.source, choice)


def conditions(options: argparse.Namespace, name: str) -> Conditions:
    """The name, and the licences, as the options say."""
    from fedkron.registry.publish import Conditions

    return Conditions(name, options.license, options.base_license)


def _parent(storage: Storage, text: str) -> Parent:
    from fedkron.registry.publication import Parent
    from fedkron.registry.store import find, reference

    signed = find(storage, reference(text)).signed
    return Parent(signed.publication.name, signed.publication.release, signed.digest)
