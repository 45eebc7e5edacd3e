"""On-policy distillation in rounds (DESIGN: the student writes, the teacher scores, the student learns)."""
