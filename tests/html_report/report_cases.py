"""Names and reasons that are no HTML, and look like it."""

HOSTILE = "<img src=x onerror=alert(1)> %{x} {{ 7*7 }}"
"""The name of a task, which is its folder's."""

NOWHERE = "<script>alert(2)<"
"""The folder of a task that is not there."""

RUN = "<b>eventful"
