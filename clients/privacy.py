"""What a run's privacy settings ask of a node: noise on what it has trained, before anything else is done."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedkron.flower.local_privacy import local_privacy
from fedkron.settings import LOCAL_PRIVACY, Settings


def private(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip and add noise under local privacy; otherwise do nothing, the server does what there is to do."""
    privacy = Settings.from_run_config(context.run_config).privacy
    if privacy.kind != LOCAL_PRIVACY:
        return call_next(message, context)
    return local_privacy(privacy.clipping_norm, privacy.noise_multiplier)(message, context, call_next)
