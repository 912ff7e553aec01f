"""Secure aggregation: the server learns the sum of the nodes' integer codes, and no single one's.

The protocol is that of Bonawitz et al. 2017 (CCS, "Practical Secure Aggregation for Privacy-Preserving
Machine Learning") with two masks, for codes of few bits. docs/security.md says what it protects against, and
what not; docs/formats.md what travels. All of it is pure: `member` is what a node does, `unmasking` what the
server does.
"""
