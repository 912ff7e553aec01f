"""What runs on every site."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from questions.task import Classifier, Example, accuracy, load, train

app = ClientApp()


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train on this site's questions."""
    model = received(message)
    examples = own(context, "train")
    train(model, examples)
    metrics = MetricRecord({"num-examples": len(examples)})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_here(message: Message, context: Context) -> Message:
    """Count right answers on this site's test questions."""
    examples = own(context, "test")
    metrics = {"accuracy": accuracy(received(message), examples), "num-examples": len(examples)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def received(message: Message) -> Classifier:
    """The model with the arrays that the server has sent."""
    model = Classifier()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def own(context: Context, part: str) -> list[Example]:
    """This site's share of the data."""
    partition, partitions = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    return load(str(context.run_config["data"]), part, partition, partitions)
