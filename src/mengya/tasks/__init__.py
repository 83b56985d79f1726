"""What can be asked and graded. A new task is one module here and one entry of `TASKS`."""

from mengya.tasks import choice, exact, extraction, schoolbook, talk

TASKS = {task.name: task for task in (*schoolbook.TASKS, *talk.TASKS, exact.TASK, choice.TASK, extraction.TASK)}
"""The `kind` of a row of a questions file -> its task."""
