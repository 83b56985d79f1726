"""What can be asked and graded. A new task is one module here and one entry of `TASKS`."""

from mengya.tasks import choice, exact, extraction, grounded, schoolbook, talk

OTHERS = (exact.TASK, choice.TASK, extraction.TASK, grounded.TASK)
TASKS = {task.name: task for task in (*schoolbook.TASKS, *talk.TASKS, *OTHERS)}
"""The `kind` of a row of a questions file -> its task."""
