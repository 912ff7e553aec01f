"""`fedkron pull`: a published adapter, as files, into a bundle, or to a running service."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.commands.verify import add_publication_arguments, find_publication, read_trusted
from fedkron.errors import ConfigError
from fedkron.exchange import load_head

if TYPE_CHECKING:  # it needs `onnxruntime`
    from fedkron.registry.pull import Order


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "pull",
        help="fetch a published adapter, checked, also straight into a bundle",
        description="Fetch a published adapter: as files (-o), into a bundle (--into), or to a service that "
        "runs (--into and --adapters). Signature, key, hashes, and whether it fits are checked before "
        "anything is written. A device needs fedkron[edge,exchange] for it, no torch.",
    )
    add_publication_arguments(parser)
    parser.add_argument(
        "--trust-first-use",
        action="store_true",
        help="believe whoever has signed it, if nobody is known for this name, and remember the key for it",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write its files to this folder")
    target.add_argument("--into", type=Path, metavar="BUNDLE", help="add it to this bundle")
    parser.add_argument(
        "--adapters",
        type=Path,
        metavar="FOLDER",
        help="with --into: leave the bundle as it is, and write the adapter, encoded for it, to the folder "
        "that fedkron serve BUNDLE --adapters FOLDER follows",
    )
    parser.add_argument(
        "--name", dest="called", metavar="NAME", help="its name there (default: as published)"
    )
    parser.add_argument(
        "--head",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="with --into: a head of your own for a task; may be repeated (default: those published with it, "
        "then those that the bundle was exported with)",
    )
    parser.add_argument("--json", action="store_true", help="print what was pulled as JSON")
    parser.set_defaults(command=pull)


def pull(options: argparse.Namespace) -> int:
    """Pull, and print where it is."""
    from fedkron.registry.pull import Order
    from fedkron.registry.trust import check_trusted, is_trusted, known_publishers, remember

    given = (("--adapters", options.adapters), ("--name", options.called), ("--head", options.head))
    if options.into is None and (first := [name for name, value in given if value]):
        raise ConfigError(f"{first[0]} is for --into BUNDLE")
    found = find_publication(options.store, options.adapter)
    publication, trusted = found.signed.publication, read_trusted(options)
    is_new = options.trust_first_use and not is_trusted(publication, trusted)
    if not is_new:
        check_trusted(publication, trusted)
    path = _write(options, Order(found, is_exact=_names_a_release(options.adapter)))
    if is_new:
        remember(publication, known_publishers())
    if options.json:
        facts = {
            "name": publication.name,
            "release": publication.release,
            "sha256": found.signed.digest,
            "public_key": publication.public_key,
            "path": str(path),
        }
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{publication.name}@{publication.release}: {path}")
    if is_new:
        print(f"Key {publication.public_key} is believed for {publication.name!r} from now on.")
    return 0


def _names_a_release(adapter: str | None) -> bool:
    from fedkron.registry.store import reference

    return adapter is not None and reference(adapter).release is not None


def _write(options: argparse.Namespace, order: Order) -> Path:
    from fedkron.registry.pull import pull_for_service, pull_into_bundle, pull_to_folder

    if options.into is None:
        return pull_to_folder(order, options.output)
    name = options.called or order.signed.publication.name
    heads = [load_head(path) for path in options.head]
    if options.adapters is not None:
        return pull_for_service(order, options.into, options.adapters, name, heads)
    return pull_into_bundle(order, options.into, name, heads)
