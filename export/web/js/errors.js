// What can go wrong, by the same names as in Python (fedkron/errors.py). Messages are for the page's visitor.

/** A bundle is missing, damaged, or of another kind or version. */
export class BundleError extends Error {}

/** An adapter belongs to another base, or to a graph with another slot. */
export class ContractError extends Error {}

/** An adapter file cannot be read, or was altered. */
export class AdapterError extends Error {}

/** A question cannot be asked: an unknown task, no text, no choices. */
export class TaskError extends Error {}
