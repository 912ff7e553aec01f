"""The whole protocol between nodes and server: what comes out, and what nobody may get out or put in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from secure_cases import CONTRACT, Nodes, agreed, form, masked, random_codes, session, unmasked

from fedkron.errors import ChecksumError, ConfigError, PayloadError, SecurityError
from fedkron.secure import shamir
from fedkron.secure.keys import agreed_key, load_identity, load_peers, new_identity
from fedkron.secure.masks import stream
from fedkron.secure.member import Secrets, advertise, opened, revealed, share, total_mask
from fedkron.secure.roster import Advertisement, Policy, read_advertisements, roster, shares_needed
from fedkron.secure.unmasking import Unmasking
from fedkron.secure.upload import binding_of

SIZES = (30, 1, 12)


def codes_of(nodes: Nodes, levels: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {
        node: (random_codes(sum(SIZES), levels, node), random_codes(len(SIZES), 256, node + 1))
        for node in nodes.roster.nodes
    }


# ------------------------------------------------------------------ what comes out


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    levels=st.sampled_from([2, 3, 5, 15, 255]),
    threshold=st.floats(0.5, 1.0),
    data=st.data(),
)
def test_what_is_left_is_the_sum_of_codes_whoever_drops_out(
    count: int, levels: int, threshold: float, data: st.DataObject
) -> None:
    nodes = agreed(count, levels=levels, threshold=threshold)
    needed = nodes.roster.threshold

    def those_who_stay(before: tuple[int, ...], stage: str) -> tuple[int, ...]:
        gone = data.draw(st.sets(st.sampled_from(before), max_size=len(before) - needed), label=stage)
        return tuple(node for node in before if node not in gone)

    sharing = those_who_stay(nodes.roster.nodes, "gone after the keys")
    uploading = those_who_stay(sharing, "gone after sharing")
    revealing = those_who_stay(uploading, "gone after uploading")
    layout, codes = form(nodes, SIZES), codes_of(nodes, levels)
    uploads = masked(nodes, layout, {node: codes[node] for node in uploading}, sharing)
    found = layout.unpack(unmasked(nodes, uploads, sharing, revealing))
    for sums, place in zip(found, (0, 1), strict=True):
        assert np.array_equal(sums, sum(codes[node][place].astype(np.uint32) for node in uploading))


def test_one_share_too_few_leaves_the_masks_on() -> None:
    nodes = agreed(5)
    sharing, layout = nodes.roster.nodes, form(nodes, SIZES)
    assert nodes.roster.threshold == 3
    uploads = masked(nodes, layout, codes_of(nodes, 5), sharing)
    with pytest.raises(SecurityError, match="2 shares of a secret are there, it takes 3"):
        unmasked(nodes, uploads, sharing, sharing[:2])


@pytest.mark.parametrize(
    ("threshold", "nodes", "needed"),
    [
        (0.6, 4, 3),
        (0.6, 5, 3),
        (0.6, 8, 5),
        (0.6, 10, 6),
        (0.5, 8, 5),
        (0.5, 9, 5),
        (1.0, 7, 7),
        (0.7, 10, 7),
    ],
)
def test_unmasking_takes_the_share_that_was_set_and_more_than_half(
    threshold: float, nodes: int, needed: int
) -> None:
    assert shares_needed(threshold, nodes) == needed


# ------------------------------------------------------------------ what the server sees


def test_masked_uploads_look_like_noise() -> None:
    nodes = agreed(3, levels=3)
    layout = form(nodes, (120_000,))
    zeros = np.zeros(120_000, np.uint8), np.zeros(1, np.uint8)
    uploads = masked(nodes, layout, dict.fromkeys(nodes.roster.nodes, zeros), nodes.roster.nodes)
    for words in uploads.values():
        octets = np.frombuffer(layout.to_bytes(words, 3, bytes(32))[44:], np.uint8)
        expected = octets.size / 256
        statistic = (((np.bincount(octets, minlength=256) - expected) ** 2) / expected).sum()
        assert chi2.sf(statistic, 255) > 1e-12  # one run in a million million would fail by chance
        assert chi2.cdf(statistic, 255) > 1e-12


def test_the_same_update_never_looks_the_same() -> None:
    uploads = []
    for _ in range(2):
        nodes = agreed(3)
        layout, same = form(nodes, SIZES), (random_codes(43, 5, 0), random_codes(3, 256, 0))
        uploads += masked(nodes, layout, dict.fromkeys(nodes.roster.nodes, same), nodes.roster.nodes).values()
    assert len({words.tobytes() for words in uploads}) == 6
    # Nor do any two have as much as a word in common, but by chance (one in 2**58).
    assert not any((one == other).any() for i, one in enumerate(uploads) for other in uploads[:i])


def test_a_server_with_all_other_nodes_cannot_unmask_one_alone_without_a_threshold_of_shares() -> None:
    """The pair masks of a node are known to the others; its own mask is what keeps it hidden."""
    nodes = agreed(4)
    sharing, layout, codes = nodes.roster.nodes, form(nodes, SIZES), codes_of(nodes, 5)
    victim, *colluding = sharing
    words = masked(nodes, layout, codes, sharing)[victim]
    binding = binding_of(nodes.roster, sharing)
    for other in colluding:
        of_two = total_mask(
            nodes.secrets[other], other, nodes.roster, (victim, other), binding=binding, words=words.size
        )
        alone = total_mask(
            nodes.secrets[other], other, nodes.roster, (other,), binding=binding, words=words.size
        )
        words = words + (of_two - alone)
    # All pair masks are gone. What is left is masked by a seed of which there are shares, and nothing else.
    assert not np.array_equal(words, layout.pack(*codes[victim]))
    held = {
        nodes.roster.share_number(other): nodes.shares_of(other, sharing)[victim].seed for other in colluding
    }
    with pytest.raises(SecurityError, match="it takes 3"):
        shamir.recover(dict(list(held.items())[:2]), nodes.roster.threshold)
    assert shamir.recover(held, nodes.roster.threshold) == nodes.secrets[victim].seed


def test_a_late_upload_stays_masked_although_its_pair_masks_are_known() -> None:
    nodes = agreed(5)
    sharing, layout, codes = nodes.roster.nodes, form(nodes, SIZES), codes_of(nodes, 5)
    uploads = masked(nodes, layout, codes, sharing)
    late, *others = sharing
    shares = {
        nodes.roster.share_number(node): revealed(node, nodes.roster, nodes.shares_of(node, sharing), others)[
            late
        ]
        for node in others
    }
    # The server has the mask key of the late node: it can take off all masks that it has with others.
    assert shamir.recover(shares, nodes.roster.threshold) == nodes.secrets[late].mask
    known = replace(nodes.secrets[late], seed=shamir.random_secret())
    binding = binding_of(nodes.roster, sharing)
    guess = uploads[late] - total_mask(
        known, late, nodes.roster, sharing, binding=binding, words=layout.words
    )
    assert not np.array_equal(guess, layout.pack(*codes[late]))
    right = uploads[late] - total_mask(
        nodes.secrets[late], late, nodes.roster, sharing, binding=binding, words=layout.words
    )
    assert np.array_equal(right, layout.pack(*codes[late]))


def test_masks_do_not_cancel_among_nodes_that_were_sent_other_things() -> None:
    nodes = agreed(3)
    sharing, layout, codes = nodes.roster.nodes, form(nodes, SIZES), codes_of(nodes, 5)
    bindings = {
        node: binding_of(nodes.roster, sharing, b"adapter", b"steps" if node == sharing[0] else b"others")
        for node in sharing
    }
    total = np.zeros(layout.words, np.uint64)
    for node in sharing:
        total += layout.pack(*codes[node])
        total += total_mask(
            nodes.secrets[node], node, nodes.roster, sharing, binding=bindings[node], words=layout.words
        )
    for binding in bindings.values():
        unmasking = Unmasking(nodes.roster, nodes.commitments(sharing), sharing)
        for node in sharing:
            unmasking.take(node, revealed(node, nodes.roster, nodes.shares_of(node, sharing), sharing))
        left = unmasking.remove_masks(total, binding)
        assert not np.array_equal(left, sum(layout.pack(*codes[node]) for node in sharing))


def test_a_mask_is_the_negative_of_its_counterpart_and_no_stream_comes_twice() -> None:
    nodes = agreed(2, threshold=1.0)
    one, other = nodes.roster.nodes
    keys = {
        (node, binding): agreed_key(
            bytes(range(1, 33)) if node == one else bytes(range(2, 34)),
            nodes.roster.by_node[one].mask,
            binding,
        )
        for node in (one, other)
        for binding in (b"a", b"b")
    }
    assert len(set(keys.values())) == 4
    assert len({stream(key, 4).tobytes() for key in keys.values()}) == 4
    alone = {
        node: total_mask(nodes.secrets[node], node, nodes.roster, (node,), binding=b"x", words=9)
        for node in (one, other)
    }
    both = {
        node: total_mask(nodes.secrets[node], node, nodes.roster, (one, other), binding=b"x", words=9)
        for node in (one, other)
    }
    pair = {node: both[node] - alone[node] for node in (one, other)}
    assert pair[one].any()
    assert not (pair[one] + pair[other]).any()


# ------------------------------------------------------------------ what must not be accepted


def advertisements(count: int = 3) -> tuple[Advertisement, ...]:
    return tuple(advertise(session(), node, new_identity())[1] for node in range(count))


def test_a_list_of_nodes_survives_the_wire() -> None:
    keys = advertisements()
    data = b"".join(one.to_bytes() for one in keys)
    assert read_advertisements(data) == keys
    with pytest.raises(SecurityError, match="not advertisements"):
        read_advertisements(data[:-1])
    assert roster(session(), keys, Policy()).to_bytes() == data


@pytest.mark.parametrize("name", ["node", "identity", "seal", "mask", "seed", "signature"])
def test_a_key_that_somebody_else_has_put_in_is_refused(name: str) -> None:
    first, *others = advertisements()
    false = advertise(session(), 77, new_identity())[1]
    changed = replace(first, **{name: getattr(false, name)})
    with pytest.raises(SecurityError, match="not signed"):
        roster(session(), sorted([changed, *others], key=lambda one: one.node), Policy())


def test_keys_of_another_round_are_refused() -> None:
    keys = advertisements()
    for other in (session(round_=4), session(levels=3), replace(session(), run=8)):
        with pytest.raises(SecurityError, match="not signed by its identity for this round"):
            roster(other, keys, Policy())


def test_lists_that_are_too_short_or_out_of_order_or_have_a_node_twice_are_refused() -> None:
    keys = advertisements(4)
    with pytest.raises(SecurityError, match="has 2 nodes, fewer than 3"):
        roster(session(), keys[:2], Policy())
    for wrong in ((keys[1], keys[0], keys[2]), (keys[0], keys[0], keys[1])):
        with pytest.raises(SecurityError, match="ascending order, or has one twice"):
            roster(session(), wrong, Policy())
    identity = new_identity()
    twins = [advertise(session(), node, identity)[1] for node in (5, 6)]
    with pytest.raises(SecurityError, match="same identity key"):
        roster(session(), [*keys, *twins], Policy())


def test_an_invented_node_is_found_out_where_identities_are_known(tmp_path: Path) -> None:
    identities = [new_identity() for _ in range(3)]
    lines = [one.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for one in identities]
    listed = tmp_path / "peers"
    listed.write_bytes(b"# nodes\n\n" + b" a-comment\n".join(lines) + b"\n")
    peers = load_peers(listed)
    keys = [advertise(session(), node, identity)[1] for node, identity in enumerate(identities)]
    assert roster(session(), keys, Policy(peers=peers)).nodes == (0, 1, 2)
    invented = advertise(session(), 9, new_identity())[1]
    with pytest.raises(SecurityError, match=r"node 9 has the identity .* not in the list"):
        roster(session(), [*keys, invented], Policy(peers=peers))


def test_shares_that_were_changed_swapped_or_made_for_another_list_cannot_be_opened() -> None:
    nodes, others = agreed(3), agreed(3)
    one, two, three = nodes.roster.nodes
    box = nodes.sealed[one][1].box
    assert opened(nodes.secrets[two], two, nodes.roster, {one: box}).keys() == {one}
    changed = bytes([box[0] ^ 1]) + box[1:]
    for sender, wrong in ((one, changed), (one, box[:-1]), (three, box), (one, nodes.sealed[one][2].box),
                          (one, others.sealed[one][1].box)):  # fmt: skip
        with pytest.raises(SecurityError, match=f"shares of node {sender} cannot be opened"):
            opened(nodes.secrets[two], two, nodes.roster, {sender: wrong})


def test_a_node_shares_only_where_its_own_keys_are_in_the_list() -> None:
    nodes = agreed(3)
    node = nodes.roster.nodes[0]
    with pytest.raises(SecurityError, match="does not have the keys"):
        share(Secrets(*(shamir.random_secret() for _ in range(3))), node, nodes.roster)
    with pytest.raises(SecurityError, match="does not have the keys"):
        share(nodes.secrets[node], 5, nodes.roster)


def test_survivors_that_are_too_few_strangers_or_without_the_node_itself_get_nothing() -> None:
    nodes = agreed(5)
    one, two, three, four, _ = sharing = nodes.roster.nodes
    held = nodes.shares_of(one, sharing)
    for survivors, said in (
        ((one, two), "2 of 5 nodes, it takes 3"),
        ((two, three, four), "cannot be added up"),
        ((one, two, 999), "not nodes of this round"),
        ((two, one, three), "ascending order"),
        ((one, one, two), "ascending order"),
    ):
        with pytest.raises(SecurityError, match=said):
            revealed(one, nodes.roster, held, survivors)
    with pytest.raises(SecurityError, match="cannot be added up"):  # one whose shares never came
        revealed(one, nodes.roster, {n: s for n, s in held.items() if n != two}, (one, two, three))


def test_one_share_of_each_node_is_revealed_and_never_both() -> None:
    nodes = agreed(5)
    one, *_ = sharing = nodes.roster.nodes
    held = nodes.shares_of(one, sharing)
    found = revealed(one, nodes.roster, held, sharing[:4])
    assert [found[node] == held[node].seed for node in sharing] == [True] * 4 + [False]
    assert found[sharing[4]] == held[sharing[4]].mask


def test_false_shares_are_found_out_by_name_and_the_round_goes_on_without_them() -> None:
    nodes = agreed(5)
    sharing, layout, codes = nodes.roster.nodes, form(nodes, SIZES), codes_of(nodes, 5)
    uploads = masked(nodes, layout, codes, sharing)
    unmasking = Unmasking(nodes.roster, nodes.commitments(sharing), sharing)
    liar, *honest = sharing
    false = revealed(liar, nodes.roster, nodes.shares_of(liar, sharing), sharing)
    with pytest.raises(SecurityError, match=f"node {liar} reveals a false share of node {honest[0]}"):
        unmasking.take(liar, {**false, honest[0]: shamir.random_secret()})
    with pytest.raises(SecurityError, match="reveals 4 shares, expected 5"):
        unmasking.take(liar, {node: false[node] for node in honest})
    for node in honest[:3]:
        unmasking.take(node, revealed(node, nodes.roster, nodes.shares_of(node, sharing), sharing))
    words = unmasking.remove_masks(sum(uploads.values()), binding_of(nodes.roster, sharing))
    assert np.array_equal(layout.unpack(words)[0], sum(c.astype(np.uint32) for c, _ in codes.values()))


@pytest.mark.parametrize("kind", ["seed", "mask"])
def test_a_node_that_shares_other_secrets_than_it_has_published_is_named(kind: str) -> None:
    nodes = agreed(4)
    sharing, layout = nodes.roster.nodes, form(nodes, SIZES)
    liar, *honest = sharing
    published = nodes.secrets[liar]
    other = replace(published, **{kind: shamir.random_secret()})
    # It lies after it has seen the list: share() itself would refuse.
    parts = shamir.split(getattr(other, kind), nodes.roster.threshold, len(sharing))
    uploads = masked(nodes, layout, {n: codes_of(nodes, 5)[n] for n in honest}, sharing)
    survivors = honest if kind == "mask" else list(sharing)
    commitments = nodes.commitments(sharing)
    held = {node: nodes.shares_of(node, sharing) for node in honest}
    for node, part in zip(sharing, parts, strict=True):
        if node in held:
            held[node][liar] = replace(held[node][liar], **{kind: part})
            commitments[liar][node] = held[node][liar].commitments(nodes.roster.transcript, liar, node)
    unmasking = Unmasking(nodes.roster, commitments, survivors)
    for node in honest:
        unmasking.take(node, revealed(node, nodes.roster, held[node], survivors))
    with pytest.raises(SecurityError, match=f"node {liar} has shared another"):
        unmasking.remove_masks(sum(uploads.values()), binding_of(nodes.roster, sharing))


def test_uploads_that_are_damaged_cut_off_or_of_another_round_are_refused() -> None:
    layout = form(agreed(3), SIZES)
    words = np.arange(layout.words, dtype=np.uint64)
    data = layout.to_bytes(words, 3, CONTRACT)
    found, binding = layout.from_bytes(data, 3)
    assert np.array_equal(found, words)
    assert binding == CONTRACT
    for place in (4, 10, 41, 50, len(data) - 1):
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(ChecksumError, match="damaged"):
            layout.from_bytes(damaged, 3)
    for wrong, round_, said in (
        (data[:-1], 3, "bytes, expected"),
        (data + b"\0", 3, "bytes, expected"),
        (b"XXXX" + data[4:], 3, "begins with"),
        (data, 4, "is of round 3, expected round 4"),
    ):
        with pytest.raises(PayloadError, match=said):
            layout.from_bytes(wrong, round_)


def test_a_public_key_that_leads_everybody_to_the_same_secret_is_refused() -> None:
    with pytest.raises(SecurityError, match="not fit for a key agreement"):
        agreed_key(bytes(range(32)), bytes(32), b"test")


# ------------------------------------------------------------------ key files


def private_file(path: Path, key: Ed25519PrivateKey, form: PrivateFormat) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8])
def test_identities_are_read_from_the_files_of_ssh_keygen_and_openssl(
    form: PrivateFormat, tmp_path: Path
) -> None:
    key = new_identity()
    found = load_identity(private_file(tmp_path / "key", key, form))
    assert found.private_bytes_raw() == key.private_bytes_raw()


def test_identity_files_that_others_can_read_are_missing_or_hold_something_else_are_refused(
    tmp_path: Path,
) -> None:
    path = private_file(tmp_path / "key", new_identity(), PrivateFormat.OpenSSH)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600"):
        load_identity(path)
    with pytest.raises(ConfigError, match="no identity key at"):
        load_identity(tmp_path / "none")
    path.chmod(0o600)
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_identity(path)


@pytest.mark.parametrize(
    ("text", "said"), [("", "names no key"), ("# only this\n", "names no key"), ("ssh-rsa AAAA\n", "line 1")]
)
def test_lists_of_keys_with_nothing_or_something_else_in_them_are_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "peers"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_peers(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_peers(tmp_path / "none")
