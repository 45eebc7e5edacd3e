"""What is measured of each model for a report, in the order in which it happens.

recipe_models.py     the models of a recipe: its teacher, its students and their quantised copies
held_out.py          the held-out rows to measure on
chat_templates.py    leaves out the rows that a model's chat template refuses
measurement_task.py  one model with its rows, as it is sent to another process
models.py            measures each model in a process of its own, and compares them
processes.py         those processes; quiet_start.py is what they are forked from
measure.py           one model: its cost and its answers
distance.py          its distance from the teacher, token by token
scoring.py           its answers, scored with the task metrics
answer_quality.py    its answers' repetitions, cut-off ends and empty texts
copying.py           answers that are copies of training answers
overlap.py           held-out prompts that are also training prompts
bootstrap.py         the confidence intervals of all of these
"""
